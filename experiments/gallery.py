"""The gallery: a README of the figures' folder, made from the artifacts' manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from driftlens.files import atomic_path
from driftlens.options.declaration import flag_of
from experiments.artifacts import read_manifest
from experiments.study import Study

__all__ = ["write"]


def write(folder: Path, names: Sequence[str], study: Study) -> None:
    """Write `README.md` with every artifact in the folder; nothing if there is none."""
    found = [(name, manifest) for name in names if (manifest := read_manifest(name, folder)) is not None]
    if not found:
        return
    text = "\n".join([*_head(study), *_overview(found), *(line for entry in found for line in _section(*entry))])
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")


def _head(study: Study) -> list[str]:
    options = study.options
    changed = [
        _argument(item, getattr(options, item.name))
        for item in fields(options)
        if item.name not in ("out", "png", "redo", "device", "device_map", "batch_size")
        and getattr(options, item.name) != item.default
    ]
    arguments = f" {' '.join(changed)}" if changed else ""
    made = f"`python -m experiments.all{arguments}`"
    about = (
        f"Made by {made}. {study.about}; data `{study.configuration['data']}`. The figures of tokens and layers are "
        f"measured on at most {study.most_records} records of a task, the benchmark's tables on the records and "
        "editors that they name. Every picture has a page with exact values on hover (`.html`, which reads "
        "`plotly.min.js` beside it), the table that is drawn (`.csv`), the cases behind it (`.parquet`), a caption "
        "with the paper's numbers beside these (`.md`), and the same for programs (`.json`)."
    )
    rules = (
        "Whether a claim of the paper appears is answered by fixed rules. An effect that makes up half of what it "
        "could, or a correlation of 0.5, is “yes, strongly”; 0.2 and 0.3 are “yes”, less is “weakly”; nothing whose "
        "95 % interval holds zero counts."
    )
    return ["# The paper's figures and tables", "", about, "", rules, ""]


def _argument(item: Field[Any], value: Any) -> str:
    """Format an option as it is typed."""
    flag = flag_of(item)
    if isinstance(value, bool):
        return flag
    if not isinstance(value, tuple):
        return f"{flag} {value}"
    parts = ["x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value]  # pyright: ignore[reportUnknownArgumentType]
    repeated = isinstance(value[0], str)
    return " ".join(f"{flag} {part}" for part in parts) if repeated else f"{flag} {','.join(parts)}"


def _overview(found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = ["| | claim of the paper | on this model |", "| --- | --- | --- |"]
    for name, manifest in found:
        label = manifest["title"].split(". ")[0]
        lines += [f"| [{label}](#{name}) | {claim['claim']} | {claim['answer']} |" for claim in manifest["claims"]]
    return [*lines, ""]


def _section(name: str, manifest: dict[str, Any]) -> list[str]:
    files = " · ".join(f"[{file.rsplit('.', 1)[1]}]({file})" for file in manifest["files"])
    lines = [f'<a id="{name}"></a>', "", f"## {manifest['title']}", ""]
    if f"{name}.png" in manifest["files"]:
        lines += [f"[![{manifest['title']}]({name}.png)]({name}.md)", ""]
    for claim in manifest["claims"]:
        answer = claim["answer"][0].upper() + claim["answer"][1:]
        lines.append(f"- {claim['claim']} **{answer}.** {claim['because']}")
    return [*lines, "", files, ""]
