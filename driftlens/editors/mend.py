"""MEND, editing by a trained network that turns a gradient into an edit (Mitchell et al. 2022).

1. A backward pass of the new target's NLL at the edit prompt gives, for each edited weight, x and δ of every token.
2. The hypernetwork (:mod:`driftlens.editors.mend_network`) changes them to x̃ and δ̃.
3. ``W += −lr · x̃ᵀ δ̃``: a low-rank change, one rank for each token that the loss depends on.

Nothing is optimised when editing: an edit costs a forward and a backward pass over the last blocks.  SADR acts in the
*training* of the hypernetwork, so "MEND + SADR" is another hypernetwork, and ``regularizers=(SADR(),)`` chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from driftlens.data import Fact
from driftlens.editors.base import Editor, check_settings, undisturbed
from driftlens.editors.failures import Failure, delivered, finite
from driftlens.editors.mend_files import TrainedMEND, known_files, train_command, warn_of_another_model
from driftlens.editors.mend_gradients import Targets, enter, gradient_factors, low_rank_hooks, target_nll
from driftlens.editors.mend_network import Hypernetwork
from driftlens.editors.presets import PRESETS, Preset
from driftlens.editors.requests import asked_together, check_facts
from driftlens.editors.sadr import SADR
from driftlens.edits import Edit, EditResult, JointEditResult, LowRank
from driftlens.errors import DriftlensError
from driftlens.models import LensModel, check_loaded
from driftlens.models.memory import in_batches
from driftlens.models.prompts import TokenizedPrompt, try_tokenize_prompts
from driftlens.models.sites import Site
from driftlens.progress import OnDone

__all__ = ["MEND"]

_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class MEND(Editor):
    """MEND with a trained hypernetwork; :meth:`for_model` and :meth:`load` find one, :func:`driftlens.train_mend` makes
    one.

    Attributes:
        hypernetwork: the trained hypernetwork.
        regularizers: the SADR that it was trained with, or none; nothing else.
        files: hypernetwork files to choose from where another SADR is wanted; none: those that come with driftlens and
            those in the cache folder.

    Raises:
        DriftlensError: regularizers that the hypernetwork was not trained with.
    """

    hypernetwork: TrainedMEND
    files: tuple[str | PathLike[str], ...] = ()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS["MEND"]

    _not_described: ClassVar[tuple[str, ...]] = (*Editor._not_described, "hypernetwork", "files")

    def __post_init__(self) -> None:
        super().__post_init__()
        trained = () if self.hypernetwork.sadr is None else (self.hypernetwork.sadr,)
        if self.regularizers and self.regularizers != trained:
            raise DriftlensError(
                f"this hypernetwork was trained {_described(trained)} and cannot edit {_described(self.regularizers)}; "
                "MEND.for_model(model, regularizers=...) finds one that was"
            )
        object.__setattr__(self, "regularizers", trained)

    @classmethod
    @override
    def for_model(cls, model: LensModel, **changes: Any) -> Self:
        """MEND with the hypernetwork for ``model`` that was trained with the given ``regularizers``, or without any.

        Raises:
            DriftlensError: there is none; it says which command trains it.
        """
        check_loaded(model)
        check_settings(cls, changes)
        if "hypernetwork" in changes:
            editor = cls(**changes)
        else:
            files = tuple(changes.pop("files", ()))
            given: Any = changes.pop("regularizers", ())
            wanted = tuple(given) if isinstance(given, Sequence) else (given,)
            editor = cls(hypernetwork=_chosen(model, wanted, files), files=files, **changes)
        editor.check(model)
        return editor

    @classmethod
    def load(cls, path: str | PathLike[str], model: LensModel) -> Self:
        """MEND with the hypernetwork of a file that :func:`driftlens.train_mend` wrote for ``model``.

        Warns where it was trained for other weights of the same shape.

        Raises:
            DriftlensError: the file is missing, damaged, no hypernetwork, or for a model of another shape.
        """
        check_loaded(model)
        known_files(model, [path])
        editor = cls(hypernetwork=TrainedMEND.load(path), files=(path,))
        editor.check(model)
        return editor

    @property
    def network(self) -> Hypernetwork:
        """The hypernetwork itself."""
        return self.hypernetwork.network

    @property
    @override
    def edited_layers(self) -> tuple[int, ...]:
        return self.network.layers

    @property
    @override
    def most_steps(self) -> int:
        return 2  # before the edit and after it

    @property
    @override
    def restrained_above(self) -> int:
        return self.edited_layers[0]

    @classmethod
    @override
    def usual_gamma(cls, model: LensModel, **changes: Any) -> float:
        """The preset's, or, where there is no hypernetwork with it but one with another, that one's."""
        usual = super().usual_gamma(model)
        known = {about.gamma for about in known_files(model, changes.get("files", ())).values() if about.gamma}
        return known.pop() if len(known) == 1 else usual

    @override
    def gammas(self, model: LensModel) -> tuple[float, ...]:
        return tuple(sorted({about.gamma for about in known_files(model, self.files).values() if about.gamma}))

    @override
    def with_regularizers(self, model: LensModel, regularizers: Sequence[Any]) -> Self:
        if tuple(regularizers) == self.regularizers:
            return self
        chosen = _chosen(model, tuple(regularizers), self.files)
        return replace(self, hypernetwork=chosen, regularizers=())

    @override
    def check(self, model: LensModel) -> None:
        super().check(model)
        for site, shape in self.network.shapes.items():
            found = tuple(model.linear(site)[0].shape)
            if found != shape:
                raise DriftlensError(
                    f"the hypernetwork's {site} is {shape[0]} × {shape[1]}, for {self.hypernetwork.about.model}; "
                    f"{model.name}'s is {found[0]} × {found[1]}; {train_command(model)}"
                )
        warn_of_another_model(self.hypernetwork.about, model)

    @override
    def provenance(self, model: LensModel, *facts: Fact) -> dict[str, str]:
        return {**super().provenance(model, *facts), "hypernetwork": self.network.digest}

    @override
    @undisturbed
    def edit_many(
        self,
        model: LensModel,
        facts: Sequence[Fact],
        *,
        batch_size: int | None = None,
        on_step: OnDone | None = None,
        on_facts: OnDone | None = None,
    ) -> list[EditResult]:
        check_facts(facts)
        self.check(model)
        about = {fact: self.provenance(model, fact) for fact in facts}
        network = self._placed(model)

        def edit_batch(batch: Sequence[Fact]) -> list[EditResult | Failure]:
            read = try_tokenize_prompts(model, [(fact.text, fact.target_new) for fact in batch])
            prompts = [prompt for prompt in read if isinstance(prompt, TokenizedPrompt)]
            made = iter(_made(model, network, prompts)) if prompts else iter(())
            if on_step is not None:
                on_step(1, 1)
            return [
                _outcome(fact, *next(made), about[fact])
                if isinstance(prompt, TokenizedPrompt)
                else Failure(fact=fact, reason=str(prompt))
                for fact, prompt in zip(batch, read, strict=True)
            ]

        return delivered(in_batches(facts, batch_size or _AT_ONCE, edit_batch, on_done=on_facts))

    @undisturbed
    def edit_together(self, model: LensModel, facts: Sequence[Fact]) -> JointEditResult:
        """One edit that writes all ``facts``, from the gradient of their target tokens' mean NLL.

        Raises:
            DriftlensError: no facts, contradictory ones, or a prompt too long.
        """
        facts = asked_together(facts)
        self.check(model)
        read = try_tokenize_prompts(model, [(fact.text, fact.target_new) for fact in facts])
        for prompt in read:
            if isinstance(prompt, DriftlensError):
                raise prompt
        prompts = [prompt for prompt in read if isinstance(prompt, TokenizedPrompt)]
        ((changes, history),) = _made(model, self._placed(model), prompts, together=len(facts))
        history.insert(0, "fact", 0)
        edit = Edit(changes, facts=facts, provenance=self.provenance(model, *facts))
        return JointEditResult(facts=facts, edit=edit, history=history, keys={}, values={})

    def _placed(self, model: LensModel) -> Hypernetwork:
        precision = torch.promote_types(model.dtype, torch.float32)
        rates = self.network.rates
        if rates.dtype == precision and rates.device == model.device:
            return self.network
        return deepcopy(self.network).to(device=model.device, dtype=precision)


def _chosen(model: LensModel, wanted: tuple[Any, ...], files: tuple[str | PathLike[str], ...]) -> TrainedMEND:
    """The hypernetwork that was trained with the regularizers that are wanted."""
    if len(wanted) > 1 or any(not isinstance(one, SADR) or one.layers is not None for one in wanted):
        raise DriftlensError(
            f"MEND takes SADR alone, for all layers above its first edited one, in the training of its hypernetwork; "
            f"it cannot edit {_described(wanted)}"
        )
    sadr: SADR | None = wanted[0] if wanted and wanted[0].gamma else None
    known = known_files(model, files)
    for path, about in known.items():
        found = None if about.sadr is None else SADR(**about.sadr)
        if found == (None if sadr is None else SADR(gamma=sadr.gamma, heads=sadr.heads)):
            return TrainedMEND.load(path)
    there = ", ".join(
        dict.fromkeys("without" if not about.gamma else f"γ = {about.gamma:g}" for about in known.values())
    )
    raise DriftlensError(
        f"no MEND hypernetwork of {model.name} was trained {_described(() if sadr is None else (sadr,))}"
        + (f" (there is: {there})" if there else "")
        + f"; {train_command(model, sadr)}"
    )


def _described(regularizers: Sequence[Any]) -> str:
    if not regularizers:
        return "without SADR"
    return "with " + " and ".join(
        f"SADR at γ = {one.gamma:g}" + (", all heads" if one.heads == "all" else "")
        if isinstance(one, SADR)
        else type(one).__name__
        for one in regularizers
    )


@torch.no_grad()
def _made(
    model: LensModel, network: Hypernetwork, prompts: Sequence[TokenizedPrompt], *, together: int = 1
) -> list[tuple[list[LowRank], pd.DataFrame]]:
    """The changes and the history of every edit; an edit writes ``together`` facts."""
    entry = enter(model, [prompt.forced for prompt in prompts], network.layers[0])
    targets = Targets.of(model, prompts)
    factors, before = gradient_factors(model, entry, targets, network.sites, together=together)
    updates = {site: network.update(site, own) for site, own in factors.items()}
    edit_of = torch.arange(len(prompts), device=model.device) // together
    hooks = low_rank_hooks(model, updates, edit_of)
    resid = model.run(entry.batch, hooks=hooks, start=entry.first, resid=entry.resid)
    after = target_nll(model, resid, targets)
    return [
        (
            [
                _change(site, updates[site][0][number], updates[site][1][number], own.used[number])
                for site, own in factors.items()
            ],
            _history(before[edit_of[targets.row] == number], after[edit_of[targets.row] == number]),
        )
        for number in range(len(prompts) // together)
    ]


def _change(
    site: Site, left: Float[Tensor, "d_in tokens"], right: Float[Tensor, "tokens d_out"], used: Tensor
) -> LowRank:
    return LowRank(site=site, left=left[:, used].contiguous(), right=right[used].contiguous())


def _history(before: Float[Tensor, " targets"], after: Float[Tensor, " targets"]) -> pd.DataFrame:
    nll = [float(before.mean()), float(after.mean())]
    probability = [float(torch.tensor(-value, dtype=torch.float64).exp()) for value in nll]
    return pd.DataFrame({"step": [0, 1], "loss": nll, "nll": nll, "probability": probability})


def _outcome(fact: Fact, changes: list[LowRank], history: pd.DataFrame, about: dict[str, str]) -> EditResult | Failure:
    if not any(change.rank for change in changes):
        reason = f"the gradient at {fact.text!r} → {fact.target_new!r} is zero; load the model in float32"
        return Failure(fact=fact, reason=reason)
    edit = Edit(changes, facts=(fact,), provenance=about)
    return finite(EditResult(fact=fact, edit=edit, history=history, keys={}, values={}))
