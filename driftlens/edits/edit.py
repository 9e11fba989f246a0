"""An edit is data, not a changed model.

An :class:`Edit` holds changes of linear maps (:mod:`driftlens.edits.changes`), the facts that it writes, and its
provenance.  It acts in either of two ways, with the same numbers:

1. as **hooks** (:meth:`Edit.hooks`, :func:`edit_hooks`): each change is added to its map's output on the fly.  No
   weight is written, so many different edits run side by side as rows of one batch.
2. as **weights** (:meth:`Edit.applied`, :meth:`Edit.export`), if it is a change of weights: written into the model
   inside a context manager that restores every bit on leaving, or into a Hugging Face folder for other programs.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.data import Fact
from driftlens.edits.changes import Change, LowRank, LowRankUpdate
from driftlens.edits.difference import difference
from driftlens.edits.gated import Gated
from driftlens.edits.saving import load, save
from driftlens.errors import DriftlensError
from driftlens.hooks import Hook
from driftlens.models.fingerprint import DIGITS
from driftlens.models.sites import Site, site_order

if TYPE_CHECKING:
    from driftlens.models import LensModel

__all__ = ["Edit", "check_edits", "edit_hooks", "hooks_of"]


@dataclass(frozen=True, kw_only=True, init=False)
class Edit:
    """Changes of a model, and the facts they write.

    Attributes:
        changes: the changes, in the order of a pass; at most one of a kind at each site, except gated ones.
        facts: the facts that the edit writes, if it writes facts.
        provenance: where the edit comes from, as flat strings; saved with it.
    """

    changes: tuple[Change, ...]
    facts: tuple[Fact, ...]
    provenance: Mapping[str, str]

    def __init__(
        self,
        changes: Iterable[Change] = (),
        *,
        updates: Mapping[int, LowRankUpdate] | None = None,
        facts: Iterable[Fact] = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        """``updates`` are low-rank changes of down-projections by layer, for edits without other changes."""
        low_rank = [
            LowRank(site=Site(layer), left=update.left, right=update.right) for layer, update in (updates or {}).items()
        ]
        object.__setattr__(self, "changes", _joined([*changes, *low_rank]))
        object.__setattr__(self, "facts", tuple(facts))
        object.__setattr__(self, "provenance", dict(provenance or {}))

    def __repr__(self) -> str:
        if self.updates or not self.changes:
            ranks = ", ".join(f"{layer}: rank {update.rank}" for layer, update in self.updates.items())
            parts = [self.provenance.get("editor"), f"layers {{{ranks}}}"]
        else:
            parts = [self.provenance.get("editor")]
        known = {id(update) for update in self.updates.values()}
        others = [change for change in self.changes if id(change) not in known]
        parts += [f"{change.site}: {change.summary}" for change in others]
        return f"Edit({', '.join(filter(None, parts))})"

    # --- what it changes ---

    @property
    def updates(self) -> Mapping[int, LowRank]:
        """The low-rank changes of down-projections by layer: ``W_out += left @ right``."""
        return {
            change.site.layer: change
            for change in self.changes
            if isinstance(change, LowRank) and change.site.map == "mlp.out"
        }

    @property
    def sites(self) -> tuple[Site, ...]:
        """The linear maps that it changes, in the order of a pass."""
        return tuple(dict.fromkeys(change.site for change in self.changes))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it changes, ascending."""
        return tuple(dict.fromkeys(site.layer for site in self.sites))

    @property
    def first_site(self) -> Site | None:
        """The first site that it changes; everything before it in a pass equals the vanilla model.  None: no change."""
        return self.sites[0] if self.changes else None

    @property
    def is_weights(self) -> bool:
        """Whether it is a change of weights, so that it can be applied and exported."""
        return all(change.is_weights for change in self.changes)

    @property
    def gates(self) -> tuple[Gated, ...]:
        """The changes that act for only some prompts."""
        return tuple(change for change in self.changes if isinstance(change, Gated))

    def _repr_html_(self) -> str:
        from driftlens.display.cards import edit

        return edit(self)

    # --- as hooks ---

    def hooks(self, model: LensModel) -> list[Hook]:
        """Make hooks that turn ``model`` into the edited model, in every row of a batch.

        Raises:
            DriftlensError: as :meth:`check`; or the edit is gated, and so depends on the prompt.
        """
        self.check(model)
        return hooks_of(model, self)

    # --- as weights ---

    @contextmanager
    def applied(self, model: LensModel) -> Generator[LensModel]:
        """Write the edit into ``model``'s weights; every bit is restored on leaving, also after an exception.

        Several edits can be nested; they add up and are left in reverse order.  Meanwhile the model belongs to this
        thread, and another thread that wants to compute with it waits.

        Raises:
            DriftlensError: it is not a change of weights; or as :meth:`check`.
        """
        self._check_is_weights("applied")
        self.check(model)
        with model.rewritten(partial(self.written, model), sites=self.sites, what=self):
            yield model

    def written(
        self, model: LensModel, site: Site | int, weight: Float[Tensor, "d_in d_out"]
    ) -> Float[Tensor, "d_in d_out"]:
        """``weight`` with this edit's changes of ``site`` added (a layer number means its down-projection).

        The sum is computed in the changes' precision.
        """
        place = Site(site) if isinstance(site, int) else site
        total = weight
        with torch.autocast(weight.device.type, enabled=False):  # autocast would round the product
            for change in self.changes:
                if change.site == place:
                    total = change.added_to(model, total)
        return total.to(weight)

    def export(self, model: LensModel, folder: str | PathLike[str]) -> None:
        """Write the edited model as a Hugging Face folder that any program can load.

        Raises:
            DriftlensError: it is not a change of weights; the folder exists and is not empty, cannot be written, or the
                backend holds no Hugging Face model.
        """
        self._check_is_weights("exported")
        self.check(model)
        with model.exclusive(), torch.no_grad():
            weights = {site: self.written(model, site, model.linear(site)[0]) for site in self.sites}
            model.export(folder, weights)

    def _check_is_weights(self, wanted: str) -> None:
        if not self.is_weights:
            change = next(change for change in self.changes if not change.is_weights)
            raise DriftlensError(
                f"the edit cannot be {wanted}: its {change.kind} change of {change.site} depends on the prompt and is "
                "no change of weights; give the edit itself to evaluate, generate and the analyses"
            )

    # --- as a file ---

    def save(self, path: str | PathLike[str]) -> None:
        """Write changes, facts and provenance to one safetensors file, atomically."""
        save(path, self.changes, self.facts, self.provenance)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Edit:
        """Read an edit that this or an earlier version of :meth:`save` wrote.

        Raises:
            DriftlensError: the file is missing, damaged, or not an edit.
        """
        changes, facts, provenance = load(path)
        return cls(changes, facts=facts, provenance=provenance)

    # --- from two models, and together ---

    @classmethod
    def between(cls, before: LensModel, after: LensModel) -> Edit:
        """Make the difference of two checkpoints of one architecture as dense changes: ``before`` edited is ``after``.

        Raises:
            DriftlensError: the two differ in shape, or in a weight that is not a linear map of an MLP.
        """
        told = {"editor": "difference", "model": before.name, "model_hash": before.model_hash, "after": after.name}
        return cls(difference(before, after), provenance=told)

    def __add__(self, other: Edit) -> Edit:
        """Combine both edits into one: the ranks at shared sites add up, the matrices sum."""
        joined = {
            key: " + ".join(part for part in (self.provenance.get(key), other.provenance.get(key)) if part)
            for key in {**self.provenance, **other.provenance}
        }
        return Edit((*self.changes, *other.changes), facts=(*self.facts, *other.facts), provenance=joined)

    def equals(self, other: Edit) -> bool:
        """Whether both change the same sites by the same numbers, regardless of provenance."""
        return len(self.changes) == len(other.changes) and all(
            mine.equals(theirs) for mine, theirs in zip(self.changes, other.changes, strict=True)
        )

    def filled(self, prompt: str) -> str:
        """Replace the ``{}`` of ``prompt``, if it has one, with the edited subject.

        An edit of several facts returns the prompt unchanged.
        """
        return self.facts[0].filled(prompt) if len(self.facts) == 1 else prompt

    def check(self, model: LensModel) -> None:
        """Refuse a model that the edit does not fit, and warn about one that it was not made for.

        Raises:
            DriftlensError: a layer is out of range, a change's shape is another model's, a number in it is NaN or
                infinite, or this edit is already applied to the model and would count twice.
        """
        self.check_shapes(model)
        for change in self.changes:
            if not change.is_finite:
                raise DriftlensError(
                    f"the edit holds NaN or infinity in layer {change.site.layer}; make it again with a lower lr"
                )
        self.check_not_applied(model)
        before = {entry.before for entry in model.written}
        # Shorter hashes come from versions that read a sample of the weights, and cannot be compared. The model may be
        # as it is now, or as before an edit that is temporarily applied: edits made on either add up.
        made_on = set(self.provenance.get("model_hash", "").split(" + "))
        if model.foreign_hooks:  # the model is in any case not the one the edit was made for; it has no hash
            return
        if all(len(known) == DIGITS for known in made_on) and not made_on & {model.model_hash, *before}:
            warnings.warn(
                f"the edit was made on {self.provenance.get('model', 'a model')} with the hash "
                f"{self.provenance['model_hash']}, but {model.name} has {model.model_hash}: its weights, precision or "
                "tokenizer are others, so the edit may not do what it was made for",
                RuntimeWarning,
                stacklevel=3,
            )

    def check_not_applied(self, model: LensModel) -> None:
        """Refuse to count an edit twice; the second part of :meth:`check`.

        Raises:
            DriftlensError: this edit is already applied to the model.
        """
        applied = [entry.what for entry in model.written if isinstance(entry.what, Edit)]
        if self.changes and any(edit is self or edit.equals(self) for edit in applied):
            raise DriftlensError(
                "this edit is applied to the model already and would count twice; inside applied() give no edit, or "
                "leave it first"
            )

    def check_shapes(self, model: LensModel) -> None:
        """Refuse a model with other layers or dimensions; the first part of :meth:`check`, which reads no weights.

        Raises:
            DriftlensError: a layer is out of range, or a change's shape is another model's.
        """
        for change in self.changes:
            change.check(model)


def check_edits(model: LensModel, edits: Iterable[Edit | None]) -> None:
    """Run :meth:`Edit.check` for each different edit, reading the model's weights once for all of them.

    It warns about a hook on the model, which changes every number without being an edit.
    """
    if hooks := model.foreign_hooks:
        warnings.warn(
            f"a hook is on the model at {hooks[0]}: the numbers are those of the model with it; remove it, with "
            "reset_hooks() if it is TransformerLens's, unless that is what you measure",
            RuntimeWarning,
            stacklevel=3,
        )
    with model.unchanged():
        for edit in {id(edit): edit for edit in edits if edit is not None}.values():
            edit.check(model)


def hooks_of(model: LensModel, edit: Edit) -> list[Hook]:
    """Make one edit's hooks for every row of a batch, unchecked."""
    return [hook for change in edit.changes for hook in type(change).batch_hooks(model, [change], None)]


def edit_hooks(model: LensModel, edits: Sequence[Edit | None], rows: Int[Tensor, "rows"] | None = None) -> list[Hook]:
    """Make hooks for a batch whose row *i* sees ``edits[rows[i]]`` (``edits[i]`` when ``rows`` is ``None``).

    ``None`` stands for the vanilla model, so vanilla and edited rows can share a pass.  Numbers and provenance are not
    checked here: callers check their edits once, with :func:`check_edits`.  Gates must be decided beforehand:
    :func:`driftlens.edits.routed`.
    """
    for edit in {id(edit): edit for edit in edits if edit is not None}.values():
        edit.check_shapes(model)
        edit.check_not_applied(model)
    index = torch.arange(len(edits)) if rows is None else rows.cpu()
    by_place = [{(change.site, type(change)): change for change in edit.changes} if edit else {} for edit in edits]
    places = sorted(
        {place for own in by_place for place in own}, key=lambda place: (site_order(place[0]), place[1].kind)
    )
    hooks: list[Hook] = []
    for place in places:
        hooks += place[1].batch_hooks(model, [own.get(place) for own in by_place], index)
    return hooks


def _joined(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Sort changes in the order of a pass, and combine those of one kind at a site.

    Gated changes stay separate, because each has its own gate.
    """
    found: dict[tuple[Site, type[Change]] | int, Change] = {}
    for change in changes:
        if isinstance(change, Gated):  # at most one gate of a site opens, so gated changes never add up
            found[id(change)] = change
            continue
        key = change.site, type(change)
        found[key] = found[key].plus(change) if key in found else change
    return tuple(sorted(found.values(), key=lambda change: site_order(change.site)))
