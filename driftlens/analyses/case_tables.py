"""Turn the effects of cells into tidy tables with a row for each case, target and cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from driftlens.analyses.cases import Case, name_targets, token_texts
from driftlens.analyses.cells import Intervention, cell_effects
from driftlens.analyses.roles import PromptParts, prompt_parts, token_roles
from driftlens.data import TaskPrompt
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import TokenizedPrompt
from driftlens.progress import OnDone

__all__ = ["TargetGrid", "baselines_table", "edited_layers", "parts_of_cases", "target_grids"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetGrid:
    """The probability of one target of one case: in both models and in every cell."""

    case: int
    target_name: str
    target: str
    tokenized: TokenizedPrompt
    vanilla: float
    edited: float
    probability: npt.NDArray[np.float64]  # [sites, tokens, layers]

    @property
    def named(self) -> dict[str, Any]:
        """The columns that identify the target in every row."""
        return {"case": self.case, "target_name": self.target_name, "target": self.target}

    @property
    def places(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Site, token and layer of every cell, in the order of :meth:`measured`."""
        site, token, layer = (axis.ravel() for axis in np.indices(self.probability.shape))
        return site, token, layer

    def token_columns(
        self, model: LensModel, parts: PromptParts, token: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[Any]]:
        """The index, text and role of each of these tokens."""
        return {
            "token": token,
            "token_text": np.array(token_texts(model, self.tokenized), dtype=object)[token],
            "role": np.array(token_roles(self.tokenized, parts), dtype=object)[token],
        }

    def measured(self, base: float) -> dict[str, npt.NDArray[np.float64]]:
        """The probability in every cell, and its difference from that of the base model."""
        probability = self.probability.ravel()
        return {"probability": probability, "effect": probability - base}


def target_grids(
    model: LensModel,
    cases: Sequence[Case],
    intervention: Intervention,
    window: int,
    target_names: Sequence[str] | None,
    *,
    batch_size: int,
    on_cells: OnDone | None = None,
) -> list[TargetGrid]:
    """Compute the grid of every target of every case, in order; see :func:`driftlens.analyses.cells.cell_effects`.

    Raises:
        DriftlensError: a window below 1, or names that do not fit the targets.
    """
    names = name_targets(target_names, len(cases[0].targets))
    effects = iter(
        cell_effects(
            model,
            [passage for case in cases for passage in case.passages],
            intervention,
            window,
            batch_size=batch_size,
            on_cells=on_cells,
        )
    )
    grids: list[TargetGrid] = []
    for number, case in enumerate(cases):
        seen = [next(effects) for _ in case.passages]
        for name, target, tokenized, (passage, place) in zip(
            names, case.targets, case.tokenized, case.read, strict=True
        ):
            of = seen[passage]
            grids.append(
                TargetGrid(
                    case=number,
                    target_name=name,
                    target=target,
                    tokenized=tokenized,
                    vanilla=float(of.vanilla[place]),
                    edited=float(of.edited[place]),
                    probability=of.grid[..., place].double().numpy(),
                )
            )
    return grids


def baselines_table(cases: Sequence[Case], grids: Sequence[TargetGrid]) -> pd.DataFrame:
    """Tabulate the probabilities without any cell: `case, prompt, target_name, target, vanilla, edited`."""
    return pd.DataFrame(
        [
            {
                "case": grid.case,
                "prompt": cases[grid.case].prompt,
                "target_name": grid.target_name,
                "target": grid.target,
                "vanilla": grid.vanilla,
                "edited": grid.edited,
            }
            for grid in grids
        ]
    )


def parts_of_cases(
    cases: Sequence[Case],
    prompt: str | TaskPrompt | Sequence[str | TaskPrompt],
    subject: str | Sequence[str | None] | None,
    templates: Sequence[str],
) -> list[PromptParts]:
    """Split each case's prompt into its parts; `subject` is one for all of them or one for each.

    Raises:
        DriftlensError: the number of subjects differs from that of the prompts.
    """
    prompts = [prompt] if isinstance(prompt, str | TaskPrompt) else list(prompt)
    subjects = [subject] * len(prompts) if subject is None or isinstance(subject, str) else list(subject)
    if len(subjects) != len(prompts):
        raise DriftlensError(f"{len(prompts)} prompts and {len(subjects)} subjects; give one of each for every prompt")
    return [
        prompt_parts(
            given if isinstance(given, TaskPrompt) else case.prompt, case.edit, subject=own, templates=templates
        )
        for case, given, own in zip(cases, prompts, subjects, strict=True)
    ]


def edited_layers(cases: Sequence[Case]) -> tuple[int, ...]:
    """The layers changed by at least one of the cases' edits."""
    return tuple(sorted({layer for case in cases for layer in case.edit.layers}))
