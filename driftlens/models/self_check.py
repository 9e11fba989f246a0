"""Check on the loaded model that driftlens's interventions take effect.

If a hook point only shows values, or shows them too late, every intervention on it is silently without effect. This
happened with GPT-J's pattern in transformer-lens 4.3. Therefore each load checks, on short prompts of random tokens and
one block:

1. The logits of a pass over two rows of different length agree with those that the wrapped model gives for each row
   on its own. Sliding windows are narrowed to a few tokens on both sides meanwhile, so that the rows reach beyond
   them. (Rotary embeddings that change beyond a boundary are not run beyond it: `families.longest_row`.)
2. The rows of the attention pattern sum to one, and the MLP's output is `mlp_post @ W_out + b_out`.
3. A random vector written at each site changes what comes after it: scores, pattern and z change the
   attention output, `mlp_post` changes the MLP's, and these two and the residual stream change the block's
   result. Where `LensModel.adds_to_resid` says so, the block's result changes by that very vector.

The vectors are random because a LayerNorm removes a constant shift.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.batch import Batch
from driftlens.models.wrapped import WrappedModel

__all__ = ["WINDOW", "SelfCheck", "check_rows", "self_check"]

WINDOW = 4
"""The greatest width of sliding windows during the check."""

# Each site, and the later site at which its effect must show.
_EFFECTS = {
    "attn_scores": "attn_out",
    "pattern": "attn_out",
    "z": "attn_out",
    "mlp_post": "mlp_out",
    "attn_out": "resid_post",
    "mlp_out": "resid_post",
    "resid_pre": "resid_post",
}
_SMALLEST_EFFECT = 1e-3


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The results of the self-check; errors are relative to the size of the compared values."""

    sites: tuple[str, ...]
    """The sites at which a write was proven to take effect."""
    logits_error: float
    pattern_error: float
    mlp_error: float


def check_rows(d_vocab: int, n_ctx: int) -> list[Int[Tensor, "1 _"]]:
    """The prompts of the self-check, a long one and a short one; the same for the same vocabulary."""
    long = torch.randint(d_vocab, (1, min(3 * WINDOW, n_ctx)), generator=torch.Generator().manual_seed(0))
    return [long, long[:, : -(-long.shape[1] // 3)].flip(1)]


@torch.no_grad()
def self_check(model: WrappedModel, reference: Sequence[Float[Tensor, "1 _ d_vocab"]]) -> SelfCheck:
    """Check `model`, with its windows narrowed to `WINDOW`, against the `reference` logits of each of `check_rows`.

    Raises:
        DriftlensError: a check fails; the message names it.
    """
    long, short = (row.to(model.device) for row in check_rows(model.d_vocab, model.n_ctx))
    batch = Batch(long, torch.ones_like(long, dtype=torch.bool))
    half = model.dtype in (torch.float16, torch.bfloat16)

    padding = long.shape[1] - short.shape[1]
    both = torch.cat([long, torch.nn.functional.pad(short, (padding, 0))])
    real = torch.ones_like(both, dtype=torch.bool)
    real[1, :padding] = False
    logits = model.unembed(model.run(Batch(both, real)))
    found = (logits[:1], logits[1:, padding:])
    logits_error = max(_relative(*pair) for pair in zip(found, reference, strict=True))
    _require(logits_error < (0.1 if half else 1e-4), model, f"its logits are off by {logits_error:.1e}")

    layer = model.n_layers // 2
    resid = model.run(batch, stop=layer)
    seen = _values(model, batch, layer, resid)

    pattern_error = float((seen["pattern"].float().sum(-1) - 1).abs().max())
    _require(pattern_error < (0.05 if half else 1e-4), model, "the rows of its attention pattern do not sum to one")

    weight, bias = model.down_projection(layer)
    weight = weight.to(seen["mlp_post"].device).float()
    by_hand = seen["mlp_post"].float() @ weight + (0 if bias is None else bias.to(weight))
    mlp_error = _relative(seen["mlp_out"], by_hand)
    # A library may round a quantised map's input, too.
    _require(
        mlp_error < (0.05 if half or model.quantisation else 1e-4),
        model,
        "mlp_post @ W_out + b_out is not its MLP's output",
    )

    for site, behind in _EFFECTS.items():
        # The residual stream may be a hundred times larger than what is added to it; in half precision a
        # smaller vector would be rounded away there.
        scale = seen["resid_post" if behind == "resid_post" else site]
        changed = _values(model, batch, layer, resid, hook=(model.hook_name(site, layer), _adding_noise(scale)))
        effect = _relative(changed[behind], seen[behind])
        name = model.hook_name(site, layer)
        _require(effect > _SMALLEST_EFFECT, model, f"what is written to {name} has no effect")
        if behind == "resid_post" and site != "resid_pre" and model.adds_to_resid(site):
            added = changed[site].float() - seen[site].float()
            strayed = _relative(changed[behind].float() - seen[behind].float(), added)
            _require(
                strayed < (0.2 if half else 1e-3),
                model,
                f"what is added at {name} reaches the block's output altered "
                "(by a norm or a factor after it? Family.rescaled_outputs says so)",
            )
    return SelfCheck(sites=tuple(_EFFECTS), logits_error=logits_error, pattern_error=pattern_error, mlp_error=mlp_error)


def _values(
    model: WrappedModel,
    batch: Batch,
    layer: int,
    resid: Tensor,
    hook: tuple[str, Callable[..., Any]] | None = None,
) -> dict[str, Tensor]:
    """The values at all sites of one block, with `hook` on it."""
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[..., None]:
        def record(tensor: Tensor, **_: Any) -> None:
            seen[site] = tensor.clone()

        return record

    hooks = [(model.hook_name(site, layer), keep(site)) for site in (*_EFFECTS, "resid_post")]
    model.run(batch, hooks=[hook, *hooks] if hook else hooks, start=layer, stop=layer + 1, resid=resid)
    missing = [model.hook_name(site, layer) for site in (*_EFFECTS, "resid_post") if site not in seen]
    _require(not missing, model, f"{', '.join(missing)} never fires")
    return seen


def _adding_noise(like: Tensor) -> Callable[..., Tensor]:
    finite = like[like.float() > -1e4].float()  # masked scores are -inf, or the least number there is
    scale = max(float(finite.std()), 1e-3)

    def add(tensor: Tensor, **_: Any) -> Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        return tensor + (scale * noise).to(tensor)

    return add


def _relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float(), expected.float().to(found.device)
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _require(holds: bool, model: WrappedModel, what: str) -> None:
    if not holds:
        raise DriftlensError(
            f"the self-check of {model.name} failed: {what}; interventions on it cannot be trusted "
            f"(check=False loads it all the same)"
        )
