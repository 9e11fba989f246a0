"""An edit is data, not a changed model.

ROME, MEMIT and PMET all end in a low-rank change of MLP down-projections, so an :class:`Edit` holds the two
factors per layer, ``W_out += left @ right``, and acts in either of two ways that give the same numbers:

1. as **hooks** (:meth:`Edit.hooks`, :func:`edit_hooks`): ``mlp_out += (mlp_post @ left) @ right`` on the fly.
   Nothing is written, so many different edits run side by side as rows of one batch.
2. as **weights** (:meth:`Edit.applied`, :meth:`Edit.export`): written into the model inside a context manager
   that restores every bit on leaving, or into a Hugging Face folder for somebody else to load.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, existing_file
from driftlens.hooks import Hook, apply_low_rank
from driftlens.models.fingerprint import DIGITS

if TYPE_CHECKING:
    from driftlens.models import LensModel

FORMAT = "driftlens-edit-1"


@dataclass(frozen=True, kw_only=True)
class LowRankUpdate:
    """One layer's change of its down-projection: ``W_out += left @ right``, rank ``r``."""

    left: Float[Tensor, "d_mlp r"]
    right: Float[Tensor, "r d_model"]

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise DriftlensError(
                f"the factors have shapes {tuple(self.left.shape)} and {tuple(self.right.shape)}; "
                "expected [d_mlp, r] and [r, d_model]"
            )

    def __repr__(self) -> str:
        return f"LowRankUpdate([{self.left.shape[0]}, {self.rank}] @ [{self.rank}, {self.right.shape[1]}])"

    @property
    def rank(self) -> int:
        """The largest rank that the change can have."""
        return self.left.shape[1]

    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change itself, in the factors' dtype."""
        return self.left @ self.right

    @cached_property
    def is_finite(self) -> bool:
        """Whether every number in the factors is one."""
        return bool(self.left.isfinite().all()) and bool(self.right.isfinite().all())

    def equals(self, other: LowRankUpdate) -> bool:
        """Whether both factors are the same, number for number."""
        pairs = ((self.left, other.left), (self.right, other.right))
        return all(a.shape == b.shape and torch.equal(a.double().cpu(), b.double().cpu()) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Low-rank updates by layer, and where they come from (``provenance``: flat strings, saved along)."""

    updates: Mapping[int, LowRankUpdate]
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        ranks = ", ".join(f"{layer}: rank {update.rank}" for layer, update in self.updates.items())
        return f"Edit({', '.join([*filter(None, [self.provenance.get('editor')]), f'layers {{{ranks}}}'])})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import edit

        return edit(self)

    def hooks(self, model: LensModel) -> list[Hook]:
        """Hooks that make ``model`` behave as edited, in every row of a batch."""
        self.check(model)
        return hooks_of(model, self)

    @contextmanager
    def applied(self, model: LensModel) -> Generator[LensModel]:
        """The edit written into ``model``'s weights; every bit is restored on leaving, also after an
        exception.

        Nests: several edits applied inside one another add up, and are left in reverse order.  Until then the model
        belongs to this thread; another one that wants to compute with it waits.

        Raises:
            DriftlensError: as :meth:`check`.
        """
        self.check(model)
        with model.rewritten(partial(self.written, model), layers=self.updates, what=self):
            yield model

    def written(
        self, model: LensModel, layer: int, W_out: Float[Tensor, "d_mlp d_model"]
    ) -> Float[Tensor, "d_mlp d_model"]:
        """``W_out`` with this edit's update of ``layer`` added, the sum formed in the factors' precision."""
        left, right = _placed(model, self.updates[layer].left, self.updates[layer].right)
        with torch.autocast(left.device.type, enabled=False):  # it would round the product
            return (W_out.to(left.dtype) + left @ right).to(W_out.dtype)

    def export(self, model: LensModel, folder: str | PathLike[str]) -> None:
        """Write the edited model as a Hugging Face folder that any program can load.

        Raises:
            DriftlensError: the folder exists and is not empty, cannot be written, or the backend holds no
                Hugging Face model; and as :meth:`check`.
        """
        self.check(model)
        with model.exclusive(), torch.no_grad():
            weights = {layer: self.written(model, layer, model.W_out(layer)) for layer in self.updates}
            model.export(folder, weights)

    def save(self, path: str | PathLike[str]) -> None:
        """Write factors and provenance to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for layer, update in self.updates.items():
            # Cloned: layers that share a factor would share memory, which the format refuses.
            tensors[f"{layer}.left"] = update.left.detach().cpu().clone(memory_format=torch.contiguous_format)
            tensors[f"{layer}.right"] = update.right.detach().cpu().clone(memory_format=torch.contiguous_format)
        metadata = {"format": FORMAT, "provenance": json.dumps(dict(self.provenance))}
        with atomic_path(path) as temporary:
            temporary.write_bytes(serialize(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Edit:
        """Read an edit that :meth:`save` wrote.

        Raises:
            DriftlensError: the file is missing, damaged, not an edit, or holds factors that are no numbers.
        """
        source = existing_file(path, "a file that Edit.save wrote")
        try:
            with safe_open(str(source), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                handle: Any = file
                metadata: dict[str, str] = handle.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DriftlensError(f"{path} is not a driftlens edit; expected a file that Edit.save wrote")
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                provenance: dict[str, str] = json.loads(metadata["provenance"])
                layers = sorted({int(name.split(".")[0]) for name in tensors})
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, DriftlensError):
                raise
            raise DriftlensError(
                f"cannot read the edit {path} ({error}); expected a file that Edit.save wrote"
            ) from error
        try:
            updates = {n: LowRankUpdate(left=tensors[f"{n}.left"], right=tensors[f"{n}.right"]) for n in layers}
        except KeyError as error:
            raise DriftlensError(f"{path} lacks the factor {error}; save the edit again") from error
        for layer, update in updates.items():
            if not update.is_finite:
                raise DriftlensError(f"the edit {path} holds NaN or infinity in layer {layer}; make it again")
        return cls(updates=updates, provenance=provenance)

    def __add__(self, other: Edit) -> Edit:
        """Both edits at once, as one edit: the ranks of shared layers add up, the matrices sum."""
        updates = dict(self.updates)
        for layer, theirs in other.updates.items():
            if layer not in updates:
                updates[layer] = theirs
                continue
            mine = updates[layer]
            precision = torch.promote_types(mine.left.dtype, theirs.left.dtype)
            lefts = (mine.left.to(precision), theirs.left.to(mine.left.device, precision))
            rights = (mine.right.to(precision), theirs.right.to(mine.right.device, precision))
            updates[layer] = LowRankUpdate(left=torch.cat(lefts, dim=1), right=torch.cat(rights, dim=0))
        joined = {
            key: " + ".join(part for part in (self.provenance.get(key), other.provenance.get(key)) if part)
            for key in {**self.provenance, **other.provenance}
        }
        return Edit(updates=dict(sorted(updates.items())), provenance=joined)

    def filled(self, prompt: str) -> str:
        """``prompt`` with the edited subject in place of its ``{}``, if it has one; an edit of one fact knows it."""
        subject = self.provenance.get("subject", "{}")
        return prompt.replace("{}", subject, 1) if self.provenance.get("prompt", "").count("{}") == 1 else prompt

    def equals(self, other: Edit) -> bool:
        """Whether both change the same layers by the same factors, wherever they come from."""
        return self.updates.keys() == other.updates.keys() and all(
            update.equals(other.updates[layer]) for layer, update in self.updates.items()
        )

    def check(self, model: LensModel) -> None:
        """Refuse a model that the edit does not fit, and warn of one that it was not made for.

        Raises:
            DriftlensError: a layer is out of range, the factors' shapes are another model's, a factor holds NaN or
                infinity, or this very edit is applied to the model already and would count twice.
        """
        self.check_shapes(model)
        for layer, update in self.updates.items():
            if not update.is_finite:
                raise DriftlensError(f"the edit holds NaN or infinity in layer {layer}; make it again with a lower lr")
        self.check_not_applied(model)
        before = {entry.before for entry in model.written}
        # Shorter hashes are of versions that read a sample of the weights, and cannot be compared.
        # The model as it is, or as it was before an edit that is applied for a while: edits made on either add up.
        made_on = set(self.provenance.get("model_hash", "").split(" + "))
        if model.foreign_hooks:  # whatever it is now, it is not what the edit was made for; it has no hash
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
        """Refuse to count twice; the second part of :meth:`check`.

        Raises:
            DriftlensError: this very edit is applied to the model already.
        """
        applied = [entry.what for entry in model.written if isinstance(entry.what, Edit)]
        if self.updates and any(edit is self or edit.equals(self) for edit in applied):
            raise DriftlensError(
                "this edit is applied to the model already and would count twice; inside applied() give no edit, or "
                "leave it first"
            )

    def check_shapes(self, model: LensModel) -> None:
        """Refuse a model with other layers or other dimensions; the first part of :meth:`check`, which reads nothing.

        Raises:
            DriftlensError: a layer is out of range, or the factors' shapes are another model's.
        """
        for layer, update in self.updates.items():
            if not 0 <= layer < model.n_layers:
                raise DriftlensError(
                    f"the edit changes layer {layer}, but {model.name} has layers 0 to {model.n_layers - 1}; "
                    "apply it to the model it was made on"
                )
            if (update.left.shape[0], update.right.shape[1]) != (model.d_mlp, model.d_model):
                raise DriftlensError(
                    f"the edit is for a down-projection of {update.left.shape[0]} × {update.right.shape[1]}, "
                    f"but {model.name}'s is {model.d_mlp} × {model.d_model}; "
                    "apply it to the model it was made on"
                )


def check_edits(model: LensModel, edits: Iterable[Edit | None]) -> None:
    """:meth:`Edit.check` of each different edit, with the model's weights read once for all of them.

    Warns where a hook is on the model, which changes every number without being an edit.
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
    """One edit's hooks for every row of a batch, unchecked."""
    hooks: list[Hook] = []
    for layer, update in edit.updates.items():
        on_post, on_out = apply_low_rank(*_placed(model, update.left, update.right))
        hooks += [(model.hook_name("mlp_post", layer), on_post), (model.hook_name("mlp_out", layer), on_out)]
    return hooks


def edit_hooks(model: LensModel, edits: Sequence[Edit | None], rows: Int[Tensor, "rows"] | None = None) -> list[Hook]:
    """Hooks for a batch whose row *i* sees ``edits[rows[i]]`` (``edits[i]`` when ``rows`` is ``None``).

    ``None`` stands for the vanilla model, so vanilla and edited rows can share a pass.  Numbers and
    provenance are not checked here: what is given edits does so once, with :func:`check_edits`.
    """
    for edit in {id(edit): edit for edit in edits if edit is not None}.values():
        edit.check_shapes(model)
        edit.check_not_applied(model)
    index = torch.arange(len(edits)) if rows is None else rows.cpu()
    hooks: list[Hook] = []
    for layer in sorted({layer for edit in edits if edit is not None for layer in edit.updates}):
        left, right = _stacked([edit.updates.get(layer) if edit is not None else None for edit in edits])
        left, right = _placed(model, left[index], right[index])
        on_post, on_out = apply_low_rank(left, right)
        hooks += [(model.hook_name("mlp_post", layer), on_post), (model.hook_name("mlp_out", layer), on_out)]
    return hooks


def _stacked(updates: Sequence[LowRankUpdate | None]) -> tuple[Tensor, Tensor]:
    """Factors of different rank (``None``: no update) as two tensors, padded with zeros to the largest
    rank.
    """
    present = [update for update in updates if update is not None]
    rank = max(update.rank for update in present)
    left, right = present[0].left, present[0].right
    # The widest precision among them, or stacking would round the edits behind the first.
    precision = reduce(torch.promote_types, (update.left.dtype for update in present))
    left = left.new_zeros(len(updates), left.shape[0], rank, dtype=precision)
    right = right.new_zeros(len(updates), rank, right.shape[1], dtype=precision)
    for i, update in enumerate(updates):
        if update is not None:
            left[i, :, : update.rank] = update.left
            right[i, : update.rank] = update.right
    return left, right


def _placed(model: LensModel, *factors: Tensor) -> tuple[Tensor, ...]:
    # At least float32: a bf16 model's edit must not lose its small entries before it is applied.
    precision = torch.promote_types(model.dtype, torch.float32)
    return tuple(factor.to(device=model.device, dtype=precision) for factor in factors)
