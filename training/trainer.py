"""One training of the bundled model: model, optimisers, schedule, checkpoints."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from driftlens.demo.world import World
from driftlens.files import atomic_path
from training.batches import Batches
from training.muon import Muon
from training.tokenizer import CONTEXT


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and optimisation; the defaults make the shipped weights."""

    steps: int = 1300
    seed: int = 0
    layers: int = 8
    width: int = 192
    heads: int = 8
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.01
    adam_lr: float = 3e-3
    warm_up: float = 0.02
    anneal_from: float = 0.55

    def lr_factor(self, step: int) -> float:
        """Short warm-up, a plateau while the subjects come in, then linearly down to zero."""
        rising = (step + 1) / self.steps / self.warm_up
        falling = (1 - step / self.steps) / (1 - self.anneal_from)
        return max(0.0, min(1.0, rising, falling))


class Trainer:
    """Model, optimisers and data of one training; `step` is the next step to do."""

    def __init__(self, recipe: Recipe, world: World, tokenizer: PreTrainedTokenizerFast, device: str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.step = 0
        self.seconds = 0.0
        self.batches = Batches(world, tokenizer, recipe.steps, recipe.seed)
        self.model: Any = GPT2LMHeadModel(_config(recipe, tokenizer))
        self.model.to(device).train()
        self.optimizers = _optimizers(self.model, recipe)
        self._base_lrs = (recipe.muon_lr, recipe.adam_lr)

    def advance(self) -> float:
        """One step; returns its loss."""
        started = time.perf_counter()
        factor = self.recipe.lr_factor(self.step)
        for optimizer, lr in zip(self.optimizers, self._base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        loss = text_loss(self.model, self.batches.batch(self.step).to(self.device))
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss.item()

    def save_checkpoint(self, path: Path) -> None:
        """Weights, optimiser states and place in the training, as safetensors (no pickle)."""
        tensors: dict[str, Tensor] = dict(self.model.named_parameters())
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
        recipe = json.dumps(asdict(self.recipe))
        metadata = {"recipe": recipe, "step": str(self.step), "seconds": str(self.seconds)}
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(stored, metadata))

    def load_checkpoint(self, path: Path) -> bool:
        """Go on from a checkpoint of the same recipe; False where there is none."""
        if not path.exists():
            return False
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata()
        if json.loads(metadata["recipe"]) != asdict(self.recipe):
            return False
        tensors = load_file(path, device=self.device)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                match name.split("."):
                    case ["optimizer", owner, index, key] if int(owner) == number:
                        state.setdefault(int(index), {})[key] = value
                    case _:
                        pass
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        return True


def text_loss(model: Any, tokens: Tensor) -> Tensor:
    """Mean loss per token of rows without padding."""
    logits = model(tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    end_of_text: Any = tokenizer.eos_token_id
    # No padding token: rows are full, and where one is set every end-of-text token raises a warning.
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as GPT-2's "gelu_new", in one kernel; the saved configuration says "gelu_new".
        activation_function="gelu_pytorch_tanh",
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )


def _optimizers(model: Any, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and layer norms."""
    parameters: list[tuple[str, Tensor]] = list(model.named_parameters())
    matrices = [parameter for name, parameter in parameters if ".h." in name and parameter.ndim == 2]
    others = [parameter for name, parameter in parameters if not (".h." in name and parameter.ndim == 2)]
    joint = {id(block.attn.c_attn.weight) for block in model.transformer.h}

    def parts(weight: Tensor) -> int:
        return 3 if id(weight) in joint else 1

    return (
        Muon(matrices, recipe.muon_lr, weight_decay=recipe.muon_weight_decay, parts=parts),
        torch.optim.AdamW(others, recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
