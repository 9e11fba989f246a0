"""The plain way, to compare with: Hugging Face's own model, one fact, one prompt and one cell at a time.

Written after the published code of ROME and of the paper, and independent of driftlens, of which only data classes
are used:

- **edit**: a fact's contexts are one padded batch of whole sequences, run through all layers at every step, with
  logits at every position; with SADR the attention maps of all layers are asked for (`output_attentions`);
- **evaluate**: a record's edit is written into the weights, its prompts are read one after the other, both targets of
  a prompt as one batch, and the weights are put back;
- **trace**: the edit is written, the modules' outputs are kept, the weights are put back; then one forward pass for
  each cell.

The numbers are the same as driftlens's: the benchmarks check that before they quote a time.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftlens.data import Fact, Record, TaskPrompt

# By model type: the MLP of a block, its second linear map, its attention.
_PATHS = {
    "gpt2": ("mlp", "mlp.c_proj", "attn"),
    "gptj": ("mlp", "mlp.fc_out", "attn"),
    "gpt_neox": ("mlp", "mlp.dense_4h_to_h", "attention"),
    "llama": ("mlp", "mlp.down_proj", "self_attn"),
}
_TRANSPOSED = ("gpt2",)


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """As `driftlens.ROME`; γ = 0 is ROME without SADR."""

    layer: int
    contexts: tuple[str, ...]
    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_norm_factor: float
    early_stop_loss: float
    gamma: float = 0.0
    eps: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class PlainEdit:
    """What is written into the weights, δ, and the loss at every step."""

    layer: int
    change: Tensor  # [d_mlp, d_model]
    delta: Tensor
    losses: tuple[float, ...]


class PlainModel:
    """A Hugging Face model with frozen weights, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        base = model.base_model
        self.blocks = base.h if hasattr(base, "h") else base.layers
        self.n_layers = len(self.blocks)
        self.kind = model.config.model_type

    @classmethod
    def load(cls, folder: Any, *, device: Any = "cpu", dtype: Any = None, attention: str | None = None) -> "PlainModel":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
        return cls(model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True))

    @property
    def device(self) -> torch.device:
        return self.model.device

    def module(self, part: int, layer: int) -> Any:
        return self.blocks[layer].get_submodule(_PATHS[self.kind][part])

    def down_projection(self, layer: int) -> Tensor:
        weight = self.module(1, layer).weight
        return weight if self.kind in _TRANSPOSED else weight.T

    def batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Rows padded on the right."""
        width = max(map(len, rows))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(list(row)), 1
        return {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}

    def joined(self, text: str, target: str) -> tuple[list[int], int]:
        """The tokens of a text with a target behind it, and how many are the text's."""
        encoding = self.tokenizer(f"{text} {target}", return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        return ids, next(i for i, (_, stop) in enumerate(offsets) if stop > len(text))

    def subject_last(self, text: str, subject: str, start: int) -> int:
        end = text.index(subject, start) + len(subject)
        offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return max(i for i, (first, stop) in enumerate(offsets) if first < end and stop > first)

    @contextmanager
    def hooked(self, *hooks: tuple[Any, str, Callable[..., Any]]) -> Iterator[None]:
        handles = [
            module.register_forward_hook(function) if kind == "out" else module.register_forward_pre_hook(function)
            for module, kind, function in hooks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def written(self, layer: int, change: Tensor) -> Iterator[None]:
        weight = self.down_projection(layer)
        before = weight.detach().clone()
        try:
            with torch.no_grad():
                weight += change.to(weight)
            yield
        finally:
            with torch.no_grad():
                weight.copy_(before)


# --- edit ---


def edit(plain: PlainModel, fact: Fact, settings: PlainSettings, solve: Callable[[Tensor], Tensor]) -> PlainEdit:
    """ROME, with SADR where γ is above 0; `solve` is C⁻¹k (the inverse is kept in the published code as well)."""
    delta, losses = _optimize(plain, fact, settings)
    texts = [context.replace("{}", fact.text) for context in settings.contexts]
    starts = [context.index("{}") for context in settings.contexts]
    mean = _keys(plain, fact, texts, starts, settings.layer).double().mean(0)
    left = solve(mean)
    left = left / left.norm()
    key = _keys(plain, fact, [fact.text], [0], settings.layer)[0].double()
    change = torch.outer(left, delta.double() / (key @ left))
    return PlainEdit(layer=settings.layer, change=change, delta=delta, losses=losses)


def edit_columns(plain: PlainModel, fact: Fact, settings: PlainSettings) -> int:
    """Columns that a step of this fact computes, padding included: what its time goes with."""
    texts = [context.replace("{}", fact.text) for context in settings.contexts]
    return (len(texts) + 1) * max(len(plain.joined(text, fact.target_new)[0]) - 1 for text in texts)


@torch.no_grad()
def _keys(plain: PlainModel, fact: Fact, texts: Sequence[str], starts: Sequence[int], layer: int) -> Tensor:
    at = [plain.subject_last(text, fact.subject, start) for text, start in zip(texts, starts, strict=True)]
    seen: list[Tensor] = []
    down = plain.module(1, layer)
    with plain.hooked((down, "in", lambda module, args: seen.append(args[0][torch.arange(len(at)), at]))):
        plain.model(**plain.batch([plain.tokenizer(text)["input_ids"] for text in texts]))
    return seen[0]


def _optimize(plain: PlainModel, fact: Fact, settings: PlainSettings) -> tuple[Tensor, tuple[float, ...]]:
    contexts, essence = settings.contexts, "{} is a"
    texts = [context.replace("{}", fact.text) for context in contexts]
    joined = [plain.joined(text, fact.target_new) for text in texts]
    essence_text = essence.replace("{}", fact.subject)
    batch = plain.batch([*(ids[:-1] for ids, _ in joined), plain.tokenizer(essence_text)["input_ids"]])
    subject = [plain.subject_last(text, fact.subject, c.index("{}")) for text, c in zip(texts, contexts, strict=True)]
    subject.append(plain.subject_last(essence_text, fact.subject, 0))
    last = torch.tensor([n_prompt - 1 for _, n_prompt in joined])
    labels = torch.full(batch["input_ids"].shape, -100)
    for row, (ids, n_prompt) in enumerate(joined):
        labels[row, n_prompt - 1 : len(ids) - 1] = torch.tensor(ids[n_prompt:])
    labels = labels[: len(texts)].to(plain.device)
    rows = torch.arange(len(subject), device=plain.device)
    columns = torch.tensor(subject, device=plain.device)
    mlp = plain.module(0, settings.layer)
    init: list[Tensor] = []
    with torch.no_grad(), plain.hooked((mlp, "out", lambda module, args, out: init.append(out))):
        bare = plain.tokenizer(fact.text)["input_ids"]
        plain.model(**plain.batch([bare]))
    precision = torch.promote_types(plain.model.dtype, torch.float32)
    target_init = init[0][0, plain.subject_last(fact.text, fact.subject, 0)].to(precision)

    delta = torch.zeros_like(target_init, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.lr)
    vanilla_essence: Tensor | None = None
    vanilla_maps: list[Tensor] = []
    losses: list[float] = []

    def add(module: Any, args: Any, out: Tensor) -> Tensor:
        return out.index_put((rows, columns), delta.to(out.dtype).expand(len(rows), -1), accumulate=True)

    for step in range(settings.steps):
        optimizer.zero_grad()
        with plain.hooked((mlp, "out", add)):
            output = plain.model(**batch, output_attentions=settings.gamma > 0, use_cache=False)
        essence_now = output.logits[-1, subject[-1]].to(precision).log_softmax(-1)
        if vanilla_essence is None:
            vanilla_essence = essence_now.detach()
        log_probs = output.logits[:-1].to(precision).log_softmax(-1)
        picked = log_probs.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
        mask = (labels >= 0).to(precision)
        nll = -((picked * mask).sum(1) / mask.sum(1)).mean()
        kl = settings.kl_factor * (essence_now.exp() * (essence_now - vanilla_essence)).sum()
        decay = settings.weight_decay * (delta.norm() if step else delta.new_zeros(())) / target_init.norm() ** 2
        loss = nll + kl + decay
        if settings.gamma > 0:
            if not vanilla_maps:
                vanilla_maps = [maps.detach() for maps in output.attentions]
            loss = loss + settings.gamma * _drift(vanilla_maps, output.attentions, last, subject, settings)
        losses.append(loss.item())
        if losses[-1] < settings.early_stop_loss or step == settings.steps - 1:
            break
        loss.backward()
        optimizer.step()
        limit = settings.clamp_norm_factor * target_init.norm()
        with torch.no_grad():
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    return delta.detach(), tuple(losses)


def _drift(
    vanilla: Sequence[Tensor], edited: Sequence[Tensor], last: Tensor, subject: Sequence[int], settings: PlainSettings
) -> Tensor:
    """Σ over layers and heads that over-attend of KL(vanilla ‖ edited), the mean over contexts (paper, Eq. 2)."""
    drift = edited[0].new_zeros((), dtype=torch.float32)
    for before, after in zip(vanilla[settings.layer + 1 :], edited[settings.layer + 1 :], strict=True):
        for row, (at, s) in enumerate(zip(last.tolist(), subject[:-1], strict=True)):
            p, q = before[row, :, at].float(), after[row, :, at].float()
            chosen = q[:, s] > p[:, s].max()
            p, q = p[chosen] + settings.eps, q[chosen] + settings.eps
            drift = drift + (p * (p / q).log()).sum() / len(last)
    return drift


# --- evaluate ---


@torch.no_grad()
def evaluate(plain: PlainModel, record: Record, edit: PlainEdit) -> list[tuple[float, float]]:
    """(NLL of the true, of the new target) of every prompt, in the record's order."""
    with plain.written(edit.layer, edit.change):
        return [_pair(plain, prompt) for prompts in record.tasks.values() for prompt in prompts]


def _pair(plain: PlainModel, prompt: TaskPrompt) -> tuple[float, float]:
    joined = [plain.joined(prompt.text, target) for target in (prompt.target_true, prompt.target_new)]
    batch = plain.batch([ids[:-1] for ids, _ in joined])
    log_probs = plain.model(**batch, use_cache=False).logits.float().log_softmax(-1)
    true, new = (
        -sum(float(log_probs[row, k - 1, ids[k]]) for k in range(n_prompt, len(ids))) / (len(ids) - n_prompt)
        for row, (ids, n_prompt) in enumerate(joined)
    )
    return true, new


def evaluation_columns(plain: PlainModel, record: Record) -> int:
    """Columns that the evaluation of this record computes, padding included."""
    prompts = [prompt for prompts in record.tasks.values() for prompt in prompts]
    pairs = [[plain.joined(p.text, target)[0] for target in (p.target_true, p.target_new)] for p in prompts]
    return sum(2 * (max(map(len, pair)) - 1) for pair in pairs)


# --- trace ---


@dataclass(frozen=True, kw_only=True)
class PlainCell:
    """Layers whose `part` (0: MLP, 2: attention, None: block) gets the edited model's output at `token`."""

    part: int | None
    token: int
    layers: range


class PlainTrace:
    """Cells of one prompt and its targets: every cell is one forward pass, whole and with all logits."""

    @torch.no_grad()
    def __init__(self, plain: PlainModel, edit: PlainEdit, text: str, targets: Sequence[str]) -> None:
        self.plain = plain
        self.joined = [plain.joined(text, target) for target in targets]
        self.batch = plain.batch([ids[:-1] for ids, _ in self.joined])
        self.z: dict[tuple[int | None, int], Tensor] = {}

        def keep(part: int | None, layer: int) -> Callable[..., None]:
            def hook(module: Any, args: Any, out: Any) -> None:
                self.z[part, layer] = out[0] if isinstance(out, tuple) else out

            return hook

        hooks = [(self._at(part, n), "out", keep(part, n)) for part in (None, 0, 2) for n in range(plain.n_layers)]
        with plain.written(edit.layer, edit.change), plain.hooked(*hooks):
            plain.model(**self.batch, use_cache=False)

    def _at(self, part: int | None, layer: int) -> Any:
        return self.plain.blocks[layer] if part is None else self.plain.module(part, layer)

    @property
    def n_tokens(self) -> int:
        return self.joined[0][1]

    @torch.no_grad()
    def probabilities(self, cell: PlainCell) -> list[float]:
        """The probability of each target with the substitution in place."""

        def put(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: Any, out: Any) -> Any:
                own = (out[0] if isinstance(out, tuple) else out).clone()
                own[:, cell.token] = self.z[cell.part, layer][:, cell.token]
                return (own, *out[1:]) if isinstance(out, tuple) else own

            return hook

        with self.plain.hooked(*((self._at(cell.part, n), "out", put(n)) for n in cell.layers)):
            log_probs = self.plain.model(**self.batch, use_cache=False).logits.float().log_softmax(-1)
        found: list[float] = []
        for row, (ids, n_prompt) in enumerate(self.joined):
            own = [float(log_probs[row, k - 1, ids[k]]) for k in range(n_prompt, len(ids))]
            found.append(float(torch.tensor(sum(own) / len(own)).exp()))
        return found


def unchanged(plain: PlainModel) -> dict[str, Tensor]:
    """The weights as they are, to prove afterwards that they are so again."""
    return copy.deepcopy(plain.model.state_dict())
