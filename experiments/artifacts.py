"""The files that an experiment writes: a picture, the plotted table, the cases behind it, and a caption.

| file | content |
| --- | --- |
| `NAME.html`, `NAME.png` | the figure; the page reads `plotly.min.js` beside it, so a folder of figures needs it once |
| `NAME.csv` | the plotted values, with intervals |
| `NAME.parquet` | the values they average, a row per case |
| `NAME.md` | the caption: the paper's numbers beside ours, and whether the paper's claims appear |
| `NAME.json` | the configuration and its hash, the numbers and the claims for programs, the files |

All files are written under temporary names and then renamed together; the manifest `NAME.json` comes last, so if it
exists, the others do too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from driftlens.display.spreadsheet import csv_bytes
from driftlens.files import atomic_path, writable_folder, write_together
from driftlens.plots import figure_html, figure_png
from driftlens.runs.shards import settings_hash

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Artifact", "Claim", "Number", "is_done", "names_of", "read_manifest", "write"]

_CLAIM = ("claim", "answer", "because")
SUFFIXES = ("html", "png", "csv", "parquet", "md", "json")

Answer = Literal["yes, strongly", "yes", "weakly", "no", "cannot be told"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number quoted in the paper, and ours; both formatted for display."""

    name: str
    paper: str
    here: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, whether it appears here, and the evidence."""

    claim: str
    answer: Answer
    because: str

    @classmethod
    def without_prompts(cls, claim: str) -> Claim:
        """A claim that the data cannot test."""
        return cls(claim=claim, answer="cannot be told", because="The data has no such prompts.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A figure or table, ready to be written.

    Attributes:
        name: the stem of its file names, such as `figure9a`.
        title: as in the paper, such as "Figure 9a. …".
        caption: sentences that say what is shown and what it was measured on.
        figure: the picture.
        drawn: the plotted values.
        cases: the cases that they average.
        numbers: the paper's beside ours.
        claims: the paper's claims about it.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure
    drawn: pd.DataFrame
    cases: pd.DataFrame
    numbers: Sequence[Number]
    claims: Sequence[Claim]


def names_of(artifacts: Iterable[str]) -> list[str]:
    """The names of all files of these artifacts."""
    return [f"{name}.{suffix}" for name in artifacts for suffix in SUFFIXES]


def write(artifact: Artifact, folder: str | Path, configuration: Mapping[str, Any], *, png: bool = True) -> str:
    """Write all files; return in one line why there is no picture, or an empty text."""
    place = writable_folder(folder)
    picture, problem = figure_png(artifact.figure, scale=2.0) if png else (None, "")
    contents: dict[str, bytes] = {
        "html": figure_html(artifact.figure, plotlyjs="directory"),
        "csv": csv_bytes(artifact.drawn, float_format="%.6g"),
        "parquet": artifact.cases.to_parquet(index=False),
        "md": _caption(artifact, picture=picture is not None).encode(),
    }
    if picture is not None:
        contents["png"] = picture
    manifest = {
        "name": artifact.name,
        "title": artifact.title,
        "hash": configuration_hash(configuration, png=png),
        "configuration": configuration,
        "files": [f"{artifact.name}.{suffix}" for suffix in contents],
        "numbers": [asdict(number) for number in artifact.numbers],
        "claims": [asdict(claim) for claim in artifact.claims],
        "no_png": problem,
    }
    _write_plotly(place)
    told = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    files = {f"{artifact.name}.{suffix}": content for suffix, content in {"json": told.encode(), **contents}.items()}
    # The manifest is first in this list and is renamed last; a picture of an earlier run would show something else.
    write_together(place, files, stale=[f"{artifact.name}.png"])
    return problem


def configuration_hash(configuration: Mapping[str, Any], *, png: bool) -> str:
    """Compute the hash that `is_done` compares."""
    return settings_hash([dict(configuration), png])


def is_done(name: str, folder: str | Path, configuration: Mapping[str, Any], *, png: bool = True) -> bool:
    """Whether all files of an artifact exist and were made with this configuration."""
    manifest = read_manifest(name, folder)
    return (
        manifest is not None
        and manifest.get("hash") == configuration_hash(configuration, png=png)
        and all((Path(folder) / file).exists() for file in manifest["files"])
    )


def read_manifest(name: str, folder: str | Path) -> dict[str, Any] | None:
    """Read an artifact's manifest; None if there is none that can be read."""
    try:
        manifest: Any = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
        whole = (
            isinstance(manifest["title"], str)
            and all(isinstance(file, str) for file in manifest["files"])
            and all(isinstance(claim[part], str) for claim in manifest["claims"] for part in _CLAIM)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # whatever stands in it
        return None
    return manifest if whole else None


def _caption(artifact: Artifact, *, picture: bool) -> str:
    lines = [f"# {artifact.title}", ""]
    if picture:
        lines += [f"![{artifact.title}]({artifact.name}.png)", ""]
    lines += [artifact.caption, ""]
    if artifact.numbers:
        lines += ["| | paper | here |", "| --- | ---: | ---: |"]
        lines += [f"| {number.name} | {number.paper} | {number.here} |" for number in artifact.numbers]
        lines.append("")
    if artifact.claims:
        lines += ["## Do the paper's claims appear on this model?", ""]
        lines += [f"- {claim.claim} **{_sentence(claim.answer)}** {claim.because}" for claim in artifact.claims]
        lines.append("")
    return "\n".join(lines).replace("W*", "W\\*")


def _sentence(answer: str) -> str:
    return f"{answer[0].upper()}{answer[1:]}."


def _write_plotly(folder: Path) -> None:
    """Write the script that all pages of a folder share."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().encode()
    path = folder / "plotly.min.js"
    if not path.exists() or path.stat().st_size != len(script):
        with atomic_path(path) as temporary:
            temporary.write_bytes(script)
