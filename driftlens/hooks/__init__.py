"""Reusable hook functions: small, pure, and written for TransformerLens hook names.

Each function takes tensors and returns a TransformerLens hook ``(activation, hook) -> activation | None``.  The hooks
are independent of editors and experiments and work on any TransformerLens model, wrapped by driftlens or not.

=============================  ====================================  =======================================
function                       hook point                            paper
=============================  ====================================  =======================================
:func:`record`                 any hook                              –
:func:`substitute`             resid, attention or MLP output        3.2, contaminating substitution
:func:`add_delta`              MLP output                            2.2, Eq. 1
:func:`apply_low_rank`         a linear map's input and output       2.2, Eq. 3, as hooks
:func:`apply_dense`            a linear map's input and output       –
:func:`patch_pattern`          ``hook_pattern``                      3.4, Figure 5
:func:`patch_pattern_row`      ``hook_pattern``                      3.4, last token only
:func:`patch_score`            ``hook_attn_scores``                  D.2, Figure 10
:func:`knock_out`              ``hook_attn_scores``                  –
:func:`detach_pattern`         ``hook_pattern``                      D.4, ROME-AWD
=============================  ====================================  =======================================
"""

from driftlens.hooks.activations import Hook, HookFunction, add_delta, apply_dense, apply_low_rank, record, substitute
from driftlens.hooks.attention import detach_pattern, knock_out, patch_pattern, patch_pattern_row, patch_score

__all__ = [
    "Hook",
    "HookFunction",
    "add_delta",
    "apply_dense",
    "apply_low_rank",
    "detach_pattern",
    "knock_out",
    "patch_pattern",
    "patch_pattern_row",
    "patch_score",
    "record",
    "substitute",
]
