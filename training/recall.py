"""How much of its world a model knows: teacher-forced greedy recall and probability of whole objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from driftlens.demo.world import World, WorldFact

ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Share of prompts after which every token of the object is the greedy choice (`exact`), and the mean
    probability of the whole object.
    """

    prompts: int
    exact: float
    probability: float


def measure_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[WorldFact],
    *,
    held_out: bool,
    templates_per_fact: int | None = None,
) -> Recall:
    """Recall over the facts' trained or held-out templates (all of them, or the first few)."""
    cases = [
        (fact.prompt(template), fact.object)
        for fact in facts
        for template in (fact.held_out_templates if held_out else fact.trained_templates)[:templates_per_fact]
    ]
    right, probability = 0, 0.0
    for start in range(0, len(cases), ROWS):
        for log_probability, greedy in _score(model, tokenizer, cases[start : start + ROWS]):
            right += greedy
            probability += log_probability.exp().item()
    return Recall(prompts=len(cases), exact=right / len(cases), probability=probability / len(cases))


@torch.no_grad()
def _score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[tuple[str, str]]
) -> Iterator[tuple[torch.Tensor, bool]]:
    prompts = tokenizer([prompt for prompt, _ in cases]).input_ids
    objects = tokenizer([target for _, target in cases]).input_ids
    rows = [torch.tensor(prompt + target) for prompt, target in zip(prompts, objects, strict=True)]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    log_probs = model(tokens, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
    for row, prompt, target in zip(log_probs, prompts, objects, strict=True):
        predicted = row[len(prompt) - 1 : len(prompt) - 1 + len(target)]
        wanted = torch.tensor(target, device=row.device)
        yield predicted.gather(1, wanted[:, None]).sum(), bool((predicted.argmax(-1) == wanted).all())


def sampled_facts(world: World, count: int) -> list[WorldFact]:
    """Every n-th fact of the world, so that all relations and kinds of subject are met."""
    return list(world.facts[:: max(1, len(world.facts) // count)])[:count]
