"""What an experiment leaves behind: a picture, the table that is drawn, the cases behind it, and a caption.

| file | what it holds |
| --- | --- |
| `NAME.html`, `NAME.png` | the figure; the page reads `plotly.min.js` beside it, so a folder of figures holds it once |
| `NAME.csv` | what is drawn, with intervals |
| `NAME.parquet` | what that is averaged over, a row per case |
| `NAME.md` | the caption: the paper's numbers beside ours, and whether the paper's claims appear |
| `NAME.json` | the configuration and its hash, the numbers and the claims for programs, the files |

All are written under temporary names and take their own together; the manifest `NAME.json` comes last, so where it is,
the others are.
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
    """A number that the paper quotes, and ours; both as they are to be printed."""

    name: str
    paper: str
    here: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says, whether it appears here, and what that rests on."""

    claim: str
    answer: Answer
    because: str

    @classmethod
    def without_prompts(cls, claim: str) -> Claim:
        """One that the data cannot tell anything about."""
        return cls(claim=claim, answer="cannot be told", because="The data has no such prompts.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A figure or table, ready to be written.

    Attributes:
        name: of its files, such as `figure9a`.
        title: as in the paper, such as "Figure 9a. …".
        caption: sentences that say what is shown and what it was measured on.
        figure: the picture.
        drawn: what the picture shows.
        cases: what that was averaged over.
        numbers: the paper's beside ours.
        claims: what the paper says about it.
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
    """All files that artifacts of these names are written to."""
    return [f"{name}.{suffix}" for name in artifacts for suffix in SUFFIXES]


def write(artifact: Artifact, folder: str | Path, configuration: Mapping[str, Any], *, png: bool = True) -> str:
    """Write all files; in one line why there is no picture, or nothing."""
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
    # The manifest, the first of them, takes its name last; a picture of an earlier run would show something else.
    write_together(place, files, stale=[f"{artifact.name}.png"])
    return problem


def configuration_hash(configuration: Mapping[str, Any], *, png: bool) -> str:
    """What `is_done` compares."""
    return settings_hash([dict(configuration), png])


def is_done(name: str, folder: str | Path, configuration: Mapping[str, Any], *, png: bool = True) -> bool:
    """Whether all files of an artifact are there and were made with this configuration."""
    manifest = read_manifest(name, folder)
    return (
        manifest is not None
        and manifest.get("hash") == configuration_hash(configuration, png=png)
        and all((Path(folder) / file).exists() for file in manifest["files"])
    )


def read_manifest(name: str, folder: str | Path) -> dict[str, Any] | None:
    """An artifact's manifest, or None where there is none that can be read."""
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
    """The script that all pages of a folder share."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().encode()
    path = folder / "plotly.min.js"
    if not path.exists() or path.stat().st_size != len(script):
        with atomic_path(path) as temporary:
            temporary.write_bytes(script)
