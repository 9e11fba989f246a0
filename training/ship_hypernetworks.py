"""Put MEND hypernetworks into the package, rounded to float16: `python -m training.ship_hypernetworks FILE...`.

Those of the bundled model come from

    python -m training.mend_records records.json
    driftlens train-mend --data records.json --rank 16 --steps 250 --out plain.safetensors
    driftlens train-mend --data records.json --rank 16 --steps 250 --sadr --out sadr.safetensors

`--sadr` takes the preset's γ.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from driftlens.editors import TrainedMEND
from driftlens.editors.mend_files import SHIPPED
from driftlens.files import writable_folder
from driftlens.options.parsing import Parser
from driftlens.options.program import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Round and write."""
    parser = Parser(prog="python -m training.ship_hypernetworks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", metavar="FILE", nargs="+", help="what driftlens train-mend wrote")
    options: argparse.Namespace = parser.parse_args(argv)
    folder = writable_folder(SHIPPED)
    for file in options.files:
        found = TrainedMEND.load(file)
        name = f"{found.about.model}{'-sadr' if found.about.gamma else ''}.safetensors"
        found.save(folder / name, dtype=torch.float16)
        Console(highlight=False).print(f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
