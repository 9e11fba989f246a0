"""Write the second moments that come with driftlens: `python -m training.ship_second_moments TEXTS --layers 4-10`.

TEXTS is a text file, a text on each line: for SmolLM2 the validation part of WikiText-2, whose first 1,000 lines have
103,048 tokens.  A minute or two on two cores.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice

from rich.console import Console

from driftlens import load_model
from driftlens.editors import open_corpus, stream_second_moments
from driftlens.editors.shipped import SHIPPED, write_shipped
from driftlens.errors import DriftlensError
from driftlens.options.parsing import Parser, layer_list
from driftlens.options.program import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and write."""
    parser = Parser(prog="python -m training.ship_second_moments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("texts", metavar="TEXTS", help="a text file, a text on each line")
    parser.add_argument("--layers", type=layer_list, required=True, metavar="L", help="such as 4-10")
    parser.add_argument("--model", default="smollm2-135m", metavar="NAME", help="smollm2-135m (default)")
    options: argparse.Namespace = parser.parse_args(argv)
    if options.model not in SHIPPED:
        raise DriftlensError(f"no second moments of {options.model} are shipped; known: {', '.join(SHIPPED)}")
    shipped = SHIPPED[options.model]
    corpus = open_corpus(options.texts)
    model = load_model(options.model)
    texts = list(islice(corpus.texts(), shipped.lines))
    tokens = sum(min(len(model.encode(text).ids), model.n_ctx) for text in texts)
    if tokens != shipped.tokens:
        raise DriftlensError(f"{options.texts} has {tokens:,} tokens, but {shipped.text} has {shipped.tokens:,}")
    moments = stream_second_moments(model, options.layers, texts)
    for layer, matrix in moments.items():
        path = write_shipped(matrix, model=options.model, layer=layer, text=shipped.text, tokens=tokens)
        Console(highlight=False).print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
