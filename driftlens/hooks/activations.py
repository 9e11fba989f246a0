"""Hooks on activations: record, substitute, add, or apply a low-rank or dense edit on the fly."""

# ruff: noqa: ARG001 (every hook takes `hook`, as TransformerLens calls it)

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

HookFunction: TypeAlias = Callable[..., Tensor | None]
"""A TransformerLens hook: ``(activation, hook) -> replacement``, or ``None`` to leave the activation
alone."""

Hook: TypeAlias = tuple[str, HookFunction]
"""A hook point's name and its function, as :meth:`driftlens.LensModel.run` takes them."""


def record(
    store: MutableMapping[Any, Tensor], key: Hashable, pick: Callable[[Tensor], Tensor] | None = None
) -> HookFunction:
    """Record the activation, or ``pick`` of it, as ``store[key]``.

    The gradient graph is kept; a pass under ``torch.no_grad`` records plain tensors.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> None:
        store[key] = activation if pick is None else pick(activation)

    return hook_function


def substitute(
    replacement: Float[Tensor, "rows d"], rows: Int[Tensor, "rows"], columns: Int[Tensor, "rows"]
) -> HookFunction:
    """Contaminating substitution (paper, 3.2): put ``replacement[i]`` at ``[rows[i], columns[i]]``.

    Rows of the activation ``[batch, seq, d]`` that ``rows`` does not name pass through unchanged, so that one
    pass can hold cells whose windows do not cover the hooked layer.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        changed = activation.clone()
        changed[rows, columns] = replacement.to(activation.dtype)
        return changed

    return hook_function


def add_delta(delta: Float[Tensor, "rows d"], rows: Int[Tensor, "rows"], columns: Int[Tensor, "rows"]) -> HookFunction:
    """Add ``delta[i]`` at ``[rows[i], columns[i]]`` of an activation ``[batch, seq, d]``; differentiable in
    ``delta``.
    """

    def hook_function(activation: Tensor, hook: Any = None) -> Tensor:
        return activation.index_put((rows, columns), delta.to(activation.dtype), accumulate=True)

    return hook_function


def apply_low_rank(
    left: Float[Tensor, "rows d_mlp r"] | Float[Tensor, "d_mlp r"],
    right: Float[Tensor, "rows r d_model"] | Float[Tensor, "r d_model"],
) -> tuple[HookFunction, HookFunction]:
    """Apply a low-rank change of a down-projection on the fly: ``mlp_out += (mlp_post @ left) @ right``.

    With a leading ``rows`` dimension, every row of the batch gets its own edit; without it, all rows get the same.

    Returns:
        A pair of hooks: the first goes on the input of the down-projection (``mlp_post``,
        ``[rows, seq, d_mlp]``), the second on the MLP's output (``mlp_out``, ``[rows, seq, d_model]``).
    """
    coefficients: list[Tensor] = []

    def on_mlp_post(activation: Tensor, hook: Any = None) -> None:
        coefficients[:] = [activation.to(left.dtype) @ left]

    def on_mlp_out(activation: Tensor, hook: Any = None) -> Tensor:
        # The sum is computed in the factors' precision: in bf16, a small change would be rounded away in a large
        # output, twice.
        changed = activation.to(right.dtype) + coefficients.pop() @ right
        return changed.to(activation.dtype)

    return on_mlp_post, on_mlp_out


def apply_dense(
    weight: Float[Tensor, "d_in d_out"], rows: Int[Tensor, "rows"] | None = None
) -> tuple[HookFunction, HookFunction]:
    """Apply a dense change of a linear map on the fly: ``output += input @ weight``, in ``rows`` or in all.

    Returns:
        A pair of hooks: the first goes on the map's input, ``[batch, seq, d_in]``, the second on its output,
        ``[batch, seq, d_out]``.
    """
    inputs: list[Tensor] = []

    def on_input(activation: Tensor, hook: Any = None) -> None:
        inputs[:] = [activation if rows is None else activation[rows]]

    def on_output(activation: Tensor, hook: Any = None) -> Tensor:
        added = inputs.pop().to(weight.dtype) @ weight
        if rows is None:
            return (activation.to(weight.dtype) + added).to(activation.dtype)
        changed = activation.clone()
        changed[rows] = (activation[rows].to(weight.dtype) + added).to(activation.dtype)
        return changed

    return on_input, on_output
