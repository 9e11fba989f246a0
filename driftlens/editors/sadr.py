"""SADR, Selective Attention Drift Restriction (paper, Section 4, Eq. 2).

For each context S_j = x_j ⊕ (s, r), with W the attention weights of the vanilla model and W^δ those of the edited one:

1. M_l(S_j) = max_h W_{l,h}(S_j)[-1, s]: the largest weight that any vanilla head of the layer gives to
   ``subject_last``.
2. H_l(S_j) = {h : W^δ_{l,h}(S_j)[-1, s] > M_l(S_j)}: the heads that now give more.  The set is recomputed at every
   step, with a strict inequality and without a gradient.
3. γ · mean_j Σ_l Σ_{h ∈ H_l(S_j)} KL(W_{l,h}(S_j)[-1, :] ‖ W^δ_{l,h}(S_j)[-1, :]).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from driftlens.editors.regularizers import LastTokenAttention
from driftlens.errors import DriftlensError


@dataclass(frozen=True, kw_only=True)
class SADR:
    """The attention-drift regulariser.

    Attributes:
        gamma: γ, the weight.  (The published settings file writes γ · 10⁴ as ``attn_W_loss_weight``.)
        heads: ``"selected"`` restrains only the heads in H_l; ``"all"`` restrains every head (ablation, 6.1).
        layers: the layers to restrain, or ``None`` for all above the edit.  Layers at or below the edit cannot drift
            and add nothing, but at least one must lie above it.
        eps: added to both distributions before the logarithm, as in the published code (10⁻⁸; 10⁻⁷ in its fp16
            runs).

    Raises:
        DriftlensError: γ is negative or not finite, eps is not above 0, or ``heads`` is unknown.
    """

    gamma: float = 1e-2
    heads: Literal["selected", "all"] = "selected"
    layers: tuple[int, ...] | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise DriftlensError(f"gamma is {self.gamma}; expected a number ≥ 0, e.g. 0.01")
        if not 0 < self.eps < 1:
            raise DriftlensError(f"eps is {self.eps}; expected a small number above 0, e.g. 1e-8")
        if self.heads not in ("selected", "all"):
            raise DriftlensError(f"heads is {self.heads!r}; expected 'selected' (the paper's) or 'all' (its ablation)")
        if self.layers is not None:
            layers: Iterable[int] = self.layers
            object.__setattr__(self, "layers", tuple(layers))  # a range is accepted

    def check_layers(self, above: range) -> None:
        """Check that some layer is restrained by an edit whose last layer is ``above``.

        Raises:
            DriftlensError: ``layers`` names a layer that the model does not have, or none above the edit.
        """
        if self.layers is None:
            return
        outside = [layer for layer in self.layers if not 0 <= layer < above.stop]
        if outside:
            raise DriftlensError(
                f"SADR's layers are {self.layers}, but layer {outside[0]} is out of range; the model has layers 0 to "
                f"{above.stop - 1}"
            )
        if not any(layer in above for layer in self.layers):
            raise DriftlensError(
                f"SADR's layers are {self.layers}, but only layers {above[0]} to {above[-1]} lie above the edit and "
                "can drift; name some of these, or none for all of them"
            )

    def penalty(self, attention: LastTokenAttention) -> Float[Tensor, "rows"]:
        """γ · Σ_l Σ_{h ∈ H_l} KL(W_{l,h} ‖ W^δ_{l,h}) per row, in float32 or better."""
        precision = torch.promote_types(attention.edited.dtype, torch.float32)
        vanilla, edited = attention.vanilla.to(precision), _Widened.apply(attention.edited, precision)
        kl = last_token_kl(vanilla, edited, eps=self.eps)
        if self.heads == "selected":
            kl = kl * over_attending(vanilla, edited, attention.subject)
        if self.layers is not None:
            # By index rather than by mask: with a mask, a GPU's host would wait to learn how many entries it selects.
            kl = kl[[at for at, layer in enumerate(attention.layers) if layer in self.layers]]
        return self.gamma * kl.sum(dim=(0, 2))


def last_token_kl(
    vanilla: Float[Tensor, "*batch keys"], edited: Float[Tensor, "*batch keys"], *, eps: float = 1e-8
) -> Float[Tensor, "*batch"]:
    """KL(vanilla ‖ edited) in nats between attention rows, with ``eps`` added to both as in the published code.

    It is also the drift of Section 3.3. Masked keys are zero in both rows and contribute nothing.
    """
    return _KL.apply(vanilla, edited, eps)


class _Widened(torch.autograd.Function):
    """Cast a tensor to a wider precision, and keep the gradient within the narrow one's range on the way back.

    Where attention falls from p to almost nothing, the gradient of the KL divergence is p / ε, up to 10⁸. In float16
    that is infinite, and the softmax before it turns it into NaN.
    """

    @staticmethod
    @override
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensor, precision = args
        ctx.dtype = tensor.dtype
        return tensor.to(precision)

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        most = torch.finfo(ctx.dtype).max
        return grad_outputs[0].clamp(-most, most).to(ctx.dtype), None


class _KL(torch.autograd.Function):
    """Σ p (log p − log q) with p = vanilla + ε, q = edited + ε.

    Its own backward pass needs only the two arguments. Composed of PyTorch operations, it would keep copies of both,
    which would be most of SADR's share of an edit's peak memory.
    """

    @staticmethod
    @override
    def forward(ctx: Any, *args: Any) -> Tensor:
        vanilla, edited, eps = args
        ctx.save_for_backward(vanilla, edited)
        ctx.eps = eps
        p = vanilla + eps
        return (p * (p.log() - (edited + eps).log())).sum(dim=-1)

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        p, q = (saved + ctx.eps for saved in ctx.saved_tensors)
        grad = grad_outputs[0].unsqueeze(-1)
        wanted_p, wanted_q, _ = ctx.needs_input_grad
        return grad * (p.log() - q.log() + 1) if wanted_p else None, -grad * p / q if wanted_q else None, None


def over_attending(
    vanilla: Float[Tensor, "layers rows heads keys"],
    edited: Float[Tensor, "layers rows heads keys"],
    subject: Tensor,
) -> Bool[Tensor, "layers rows heads"]:
    """Compute H_l: the heads that give ``subject_last`` more than any vanilla head of their layer.  No gradient."""
    index = subject.view(1, -1, 1, 1).expand(*vanilla.shape[:-1], 1)
    threshold = vanilla.detach().gather(-1, index).squeeze(-1).amax(dim=-1, keepdim=True)
    return edited.detach().gather(-1, index).squeeze(-1) > threshold
