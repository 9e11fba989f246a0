"""The common part of the results of contaminating substitution and attention patching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CellResult"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellResult:
    """The effect of every cell, for one prompt or many; each subclass documents its table.

    Attributes:
        table: a row for each cell.
        baselines: a row per case and target: ``case, prompt, target_name, target, vanilla, edited``, the probabilities
            in both models.
        window: layers per cell.
        model: the model's name.
        edited_layers: the layers changed by at least one of the edits.
    """

    table: pd.DataFrame
    baselines: pd.DataFrame
    window: int
    model: str
    edited_layers: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._told())})"

    def _told(self) -> list[str]:
        n_cases = len(set(self.baselines["case"]))
        targets = ", ".join(map(str, self.baselines["target_name"].unique()))
        return [
            f"{n_cases} {'prompt' if n_cases == 1 else 'prompts'}",
            f"P of {targets}",
            f"window of {self.window}",
            repr(self.model),
        ]
