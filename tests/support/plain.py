"""The reference: plain Hugging Face with hooks of its own, nothing of TransformerLens or driftlens in it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "attn_scores", "pattern")

# Per family: attention module, its output projection, MLP, its second linear map.
_PATHS = {
    "gpt2": ("attn", "attn.c_proj", "mlp", "mlp.c_proj"),
    "gptj": ("attn", "attn.out_proj", "mlp", "mlp.fc_out"),
    "gpt_neox": ("attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
    "gpt_neo": ("attn.attention", "attn.attention.out_proj", "mlp", "mlp.c_proj"),
    "opt": ("self_attn", "self_attn.out_proj", "fc2", "fc2"),
    "starcoder2": ("self_attn", "self_attn.o_proj", "mlp", "mlp.c_proj"),
}
_LLAMA = ("self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj")

# What is done at a site: gets the tensor in TransformerLens's layout, returns a new one or None.
Edit = tuple[str, int, Callable[[Tensor], Tensor | None]]


class PlainModel:
    """A Hugging Face model with eager attention and frozen parameters, whose inner values can be seen and changed."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)
        self.model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.base: Any = getattr(self.model.base_model, "decoder", self.model.base_model)
        self.blocks: Any = self.base.h if hasattr(self.base, "h") else self.base.layers
        config = self.model.config
        self.n_heads = config.num_attention_heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads
        self.paths = _PATHS.get(config.model_type, _LLAMA)

    def run(self, tokens: Tensor, mask: Tensor | None = None, edits: Sequence[Edit] = ()) -> tuple[Tensor, Tensor]:
        """The residual stream before the final norm, and the logits."""
        mask = torch.ones_like(tokens) if mask is None else mask.long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.rows = len(tokens)
        final: list[Tensor] = []
        with self._editing([*edits, ("resid_post", len(self.blocks) - 1, final.append)]):
            output = self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return final[-1], output.logits

    def value(self, site: str, layer: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        seen: list[Tensor] = []
        self.run(tokens, mask, [(site, layer, seen.append)])
        return seen[-1]

    def next_log_probs(self, texts: Sequence[str]) -> list[Tensor]:
        """Row by row, without any padding."""
        rows = [torch.tensor([self.tokenizer(text)["input_ids"]]) for text in texts]
        return [self.run(row)[1][0, -1].log_softmax(-1) for row in rows]

    @contextmanager
    def _editing(self, edits: Sequence[Edit]) -> Iterator[None]:
        with ExitStack() as stack:
            inner = [edit for edit in edits if edit[0] in ("attn_scores", "pattern")]
            if inner:
                stack.enter_context(self._attention_replaced(inner))
            for site, layer, function in edits:
                if site not in ("attn_scores", "pattern"):
                    handle = self._register(site, self.blocks[layer], function)
                    stack.callback(handle.remove)
            yield

    def _register(self, site: str, block: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Any:
        attention, out, mlp, down = (block.get_submodule(path) for path in self.paths)
        if self.model.config.model_type == "opt" and site.startswith("mlp"):
            function = self._unfolded(function)

        def on_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (_or(function(args[0]), args[0]), *args[1:])

        def on_heads(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            split = args[0].unflatten(-1, (self.n_heads, self.d_head))
            return (_or(function(split), split).flatten(-2), *args[1:])

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (_or(function(output[0]), output[0]), *output[1:])
            return _or(function(output), output)

        if site == "resid_pre":
            return block.register_forward_pre_hook(on_input)
        if site == "mlp_post":
            return down.register_forward_pre_hook(on_input)
        if site == "z":
            return out.register_forward_pre_hook(on_heads)
        module = {"resid_post": block, "attn_out": attention, "mlp_out": mlp}[site]
        return module.register_forward_hook(on_output)

    def _unfolded(self, function: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        """OPT's MLP sees rows and columns in one dimension."""

        def on_flat(flat: Tensor) -> Tensor | None:
            new = function(flat.unflatten(0, (self.rows, -1)))
            return None if new is None else new.flatten(0, 1)

        return on_flat

    @contextmanager
    def _attention_replaced(self, edits: Sequence[Edit]) -> Iterator[None]:
        def apply(site: str, layer: int, tensor: Tensor) -> Tensor:
            for name, at, function in edits:
                if (name, at) == (site, layer):
                    tensor = _or(function(tensor), tensor)
            return tensor

        def attend(
            layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float | None = None
        ) -> Any:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.transpose(-1, -2) * scale
            scores = scores if cap is None else (scores / cap).tanh() * cap
            scores = apply("attn_scores", layer, scores + mask)
            pattern = apply("pattern", layer, scores.softmax(-1))
            return pattern @ value, pattern

        def eager(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Any:
            cap = options.get("softcap")
            z, pattern = attend(module.layer_idx, query, key, value, mask, options["scaling"], cap)
            return z.transpose(1, 2), pattern

        def gptj(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Any:
            return attend(module.layer_idx, query, key, value, mask, 1 / module.scale_attn)

        def gpt_neo(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Any:
            length = query.shape[-2]
            local = torch.zeros(length, length).masked_fill(~module.bias[0, 0, :length, :length], -1e30)
            return attend(module.layer_id, query, key, value, mask + local, 1.0)

        if self.model.config.model_type == "gptj":
            target, name, function = type(self.blocks[0].attn), "_attn", gptj
        elif self.model.config.model_type == "gpt_neo":
            target, name, function = type(self.blocks[0].attn.attention), "_attn", gpt_neo
        else:
            target, name, function = sys.modules[type(self.model).__module__], "eager_attention_forward", eager
        with mock.patch.object(target, name, function):
            yield


def _or(new: Tensor | None, old: Tensor) -> Tensor:
    return old if new is None else new
