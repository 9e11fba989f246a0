"""One page that sets the paper beside several models, claim by claim: `python -m experiments.evidence`.

Every experiment writes a manifest with the paper's claims, whether each appears on the model, and the paper's numbers
beside the model's. This module reads the manifests in several folders and writes `evidence.md`: first a table with a
row per claim and a column per model, then the numbers of each figure and table. It measures nothing.

    python -m experiments.evidence SmolLM2=figures/smollm2-135m bundled=figures --out figures
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftlens.display.terminal import standard_output
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, writable_folder
from driftlens.options.declaration import REQUIRED, option, read
from driftlens.options.program import run_command
from experiments.all import ARTIFACTS
from experiments.artifacts import read_manifest

__all__ = ["Model", "page"]

ABSENT = "–"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A column of the page: what the model is called, and the folder that its experiments wrote."""

    label: str
    folder: Path

    def manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest of an artifact, or None if it was not measured on this model."""
        return read_manifest(name, self.folder)


def page(models: Sequence[Model], *, beside: Path) -> str:
    """The page as Markdown; links are relative to the folder `beside`.

    Raises:
        DriftlensError: a folder holds no artifact.
    """
    for model in models:
        if not any(model.manifest(name) for name in ARTIFACTS):
            raise DriftlensError(
                f"{model.folder} holds no figure or table; give a folder that `python -m experiments.all --out` wrote"
            )
    labels = [model.label for model in models]
    claims: list[str] = []
    sections: list[str] = []
    for name in ARTIFACTS:
        found = {model.label: manifest for model in models if (manifest := model.manifest(name)) is not None}
        if found:
            links = {model.label: _link(model, name, beside) for model in models if model.label in found}
            claims += _claims(found, labels, links)
            sections += _numbers(found, labels)
    header = [f"| | claim of the paper | {' | '.join(labels)} |", f"| --- | --- |{' --- |' * len(labels)}"]
    return "\n".join([*_head(models), *header, *claims, "", "# In numbers", "", *sections]).rstrip() + "\n"


def _head(models: Sequence[Model]) -> list[str]:
    rows: list[str] = []
    for model in models:
        manifest = next(found for name in ARTIFACTS if (found := model.manifest(name)) is not None)
        told = manifest["configuration"]
        dtype = told.get("dtype", "")
        rows.append(
            f"- **{model.label}**: `{told.get('model', model.label)}`, {dtype}, records of `{told.get('data')}`."
        )
    about = (
        "Made by `python -m experiments.evidence` from the manifests of the experiments. Each answer links to the "
        "figure or table that it rests on. An effect that makes up half of what it could, or a correlation of 0.5, is "
        "“yes, strongly”; 0.2 and 0.3 are “yes”; less is “weakly”; an effect whose 95 % interval holds zero is “no”."
    )
    return ["# The paper's claims, model by model", "", about, "", *rows, ""]


def _link(model: Model, name: str, beside: Path) -> str:
    return os.path.relpath(model.folder / f"{name}.md", beside).replace(os.sep, "/")


def _same(text: str) -> str:
    """What identifies a claim on every model: window widths and the like differ between models of different depth."""
    return re.sub(r"\d+(\.\d+)?", "#", text)


def _claims(found: Mapping[str, Mapping[str, Any]], labels: Sequence[str], links: Mapping[str, str]) -> list[str]:
    title = str(next(iter(found.values()))["title"]).split(". ")[0]
    texts: dict[str, str] = {}
    answers: dict[str, dict[str, str]] = {}
    for label, manifest in found.items():
        for claim in manifest["claims"]:
            key = _same(claim["claim"])
            texts.setdefault(key, claim["claim"])
            answers.setdefault(key, {})[label] = f"[**{claim['answer']}**]({links[label]}) {claim['because']}"
    return [
        f"| {title} | {texts[key]} | {' | '.join(_cell(answers[key].get(label, ABSENT)) for label in labels)} |"
        for key in texts
    ]


def _numbers(found: Mapping[str, Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    paper: dict[str, str] = {}
    here: dict[str, dict[str, str]] = {}
    for label, manifest in found.items():
        for number in manifest["numbers"]:
            paper.setdefault(number["name"], number["paper"])
            here.setdefault(number["name"], {})[label] = number["here"]
    if not paper:
        return []
    rows = [
        f"| {name} | {paper[name]} | {' | '.join(_cell(here[name].get(label, ABSENT)) for label in labels)} |"
        for name in paper
    ]
    title = next(iter(found.values()))["title"]
    return [
        f"## {title}",
        "",
        f"| | paper | {' | '.join(labels)} |",
        f"| --- | ---: |{' ---: |' * len(labels)}",
        *rows,
        "",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _model(text: str) -> Model:
    label, separator, folder = text.partition("=")
    if not (label and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=FOLDER, such as SmolLM2=figures/smollm2-135m")
    return Model(label=label, folder=Path(folder))


@dataclass(frozen=True, kw_only=True)
class EvidenceOptions:
    """What the command line says."""

    models: list[Model] = option(
        REQUIRED, "a column: its name and folder", "LABEL=FOLDER", _model, nargs="+", positional=True
    )
    out: str = option("figures", "for evidence.md (default %(default)s/)", "FOLDER")


def main(argv: Sequence[str] | None = None) -> int:
    """Write `evidence.md`."""
    options = read(EvidenceOptions, argv, prog="python -m experiments.evidence", description=(__doc__ or "").strip())
    text = page(options.models, beside=Path(options.out))
    with atomic_path(writable_folder(options.out) / "evidence.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    standard_output().print(f"wrote {options.out}/evidence.md", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
