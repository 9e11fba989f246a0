"""How a MEND hypernetwork is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from driftlens.editors.mend_data import MEASURED
from driftlens.editors.mend_network import Sign
from driftlens.editors.sadr import SADR
from driftlens.errors import DriftlensError

__all__ = ["MENDTraining"]


@dataclass(frozen=True, kw_only=True)
class MENDTraining:
    """Settings of a training.

    Three of them follow the paper where the published code does otherwise; "published" reproduces the code: ``sign``,
    ``statistics``, ``optimizer``.

    Attributes:
        layers: the blocks whose MLPs are edited; None: the last three.
        rank: of the hypernetwork's layers (the paper: 1920); None: a sixteenth of the residual stream's width.
        steps: optimisation steps.
        batch_size: edits of a step.
        lr: Adam's rate for the hypernetwork (published: 1e-6, for 100,000 steps).
        rate: the learned rates at first.
        rate_lr: Adam's rate for the learned rates.
        edit_factor: c_edit, the weight of the new target's NLL.
        locality_factor: c_loc, the weight of the locality KL.
        clip: the gradient's norm at most.
        sadr: the drift term, for the layers above the first edited block; None: without.
        rephrase: judge an edit on a paraphrase, as the paper and its code do; False: on the edit prompt itself, as
            EasyEdit's port does, which trains nothing to generalise.
        sign: "paper" subtracts the update, "published" adds it, as MEND's code does.
        statistics: "paper" takes mean and deviation over training records before the first step; "published" takes in
            each edit's tokens as the training comes to them.
        optimizer: "published" gives the learned rates ``lr`` too, since the code clears their gradients before their
            own optimiser sees them, and its first step carries one edit more than the others.
        validate_every: steps between two validations.
        measured: of data without splits, how many records are left for measuring.
        seed: of the hypernetwork's first weights, the order of the edits, and the split.

    Raises:
        DriftlensError: a setting out of range.
    """

    layers: tuple[int, ...] | None = None
    rank: int | None = None
    steps: int = 1000
    batch_size: int = 10
    lr: float = 3e-4
    rate: float = 1e-4
    rate_lr: float = 1e-4
    edit_factor: float = 0.1
    locality_factor: float = 1.0
    clip: float = 100.0
    sadr: SADR | None = None
    rephrase: bool = True
    sign: Sign = "paper"
    statistics: Literal["paper", "published"] = "paper"
    optimizer: Literal["paper", "published"] = "paper"
    validate_every: int = 50
    measured: int = MEASURED
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "rate", "rate_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise DriftlensError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("sign", "statistics", "optimizer"):
            if getattr(self, name) not in ("paper", "published"):
                raise DriftlensError(f"{name} is {getattr(self, name)!r}; expected 'paper' or 'published'")
        if self.rank is not None and self.rank < 1:
            raise DriftlensError(f"rank is {self.rank}; expected at least 1")
        if self.sadr is not None and not self.sadr.gamma:
            object.__setattr__(self, "sadr", None)
        if self.sadr is not None and self.sadr.layers is not None:
            raise DriftlensError("MEND's SADR restrains all layers above the first edited block; leave its layers out")
