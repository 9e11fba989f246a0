"""Regularisers that see more than the last token of the edit's contexts, against plain passes with δ added by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from driftlens import MEMIT, PMET, ROME, SADR, Fact
from driftlens.editors import EditError, Seen, Wants
from driftlens.editors.regularizers import column_names
from driftlens.models import LensModel
from driftlens.models.prompts import pad_rows, subject_last, tokenize_prompt

FACT = Fact(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_true="French", target_new="Dutch")
OTHER = Fact(subject="Toko Yasuda", prompt="{} plays the", target_true="guitar", target_new="metal")
CONTEXTS = ("{}", "In München. {}")
LAYER = 0


@dataclass(frozen=True, kw_only=True)
class KeepAnswers:
    """weight · KL(P ‖ P_δ) of the token after prompts about the subject."""

    weight: float = 2.0
    texts: tuple[str, ...] = ("{} was born in", "They say that {} lived in the city of", "{}")
    wants: ClassVar[Wants] = Wants(attention=False, next_tokens=True)

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[list[str]]:
        return [[text.replace("{}", fact.subject) for text in self.texts] for fact in facts]

    def penalty(self, seen: Seen) -> Tensor:
        before, now = seen.before.log_probabilities, seen.now.log_probabilities
        assert before is not None
        assert now is not None
        assert not before.requires_grad
        return self.weight * (before.exp() * (before - now)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class KeepNorm:
    """weight · the mean over a layer's tokens of the squared change of the hidden state's norm."""

    layer: int = 2
    weight: float = 0.5
    wants: ClassVar[Wants] = Wants(attention=False, hidden=True)

    def penalty(self, seen: Seen) -> Tensor:
        assert seen.before.hidden is not None
        assert seen.now.hidden is not None
        place = [LAYER, *seen.layers].index(self.layer)  # after the edit layer itself, then after those above it
        change = seen.now.hidden[place].norm(dim=-1) - seen.before.hidden[place].norm(dim=-1)
        return self.weight * (change.square() * seen.mask).sum(-1) / seen.mask.sum(-1)


@dataclass(frozen=True, kw_only=True)
class KeepPatterns:
    """weight · the squared change of all attention from the subject on."""

    weight: float = 3.0
    name: str = "all attention"
    wants: ClassVar[Wants] = Wants(attention=False, patterns=True)

    def penalty(self, seen: Seen) -> Tensor:
        assert seen.before.patterns is not None
        assert seen.now.patterns is not None
        change = (seen.now.patterns - seen.before.patterns).square().sum(dim=(0, 2, 4))
        return self.weight * (change * seen.mask).sum(-1)


def rome(model: LensModel, *regularizers: Any, **changes: Any) -> ROME:
    settings: dict[str, Any] = {"layer": LAYER, "steps": 4, "lr": 1.5, "early_stop_loss": -1.0, "contexts": CONTEXTS}
    return ROME(**settings | changes, second_moment=torch.eye(model.d_mlp), regularizers=regularizers)


class Plain:
    """Both models on a text, in full passes: δ is added at the subject's last token."""

    def __init__(self, model: LensModel, fact: Fact, result: Any) -> None:
        self.model, self.fact = model, fact
        self.delta = torch.zeros(model.d_model, dtype=torch.float64)
        bare = self.values(fact.text, [("mlp_out", LAYER)])["mlp_out", LAYER]
        at = subject_last(tokenize_prompt(model, fact.text), fact.subject)
        self.delta = result.values[LAYER] - bare[at]

    def values(self, text: str, sites: Sequence[tuple[str, int]], *, edited: bool = False) -> dict[Any, Tensor]:
        prompt = tokenize_prompt(self.model, text)
        at = subject_last(prompt, self.fact.subject)
        batch, _ = pad_rows(self.model, [prompt.ids])
        seen: dict[Any, Tensor] = {}

        def add(out: Tensor, hook: Any) -> Tensor:
            changed = out.clone()
            changed[0, at] += self.delta
            return changed

        hooks: list[Any] = [(self.model.hook_name("mlp_out", LAYER), add)] if edited else []
        hooks += [
            (self.model.hook_name(*site), lambda tensor, hook, site=site: seen.__setitem__(site, tensor[0].clone()))
            for site in sites
        ]
        out = self.model.run(batch, hooks=hooks)
        seen["next"] = self.model.unembed(out[0, -1]).log_softmax(-1)
        return seen

    def target(self, text: str, target: str, *, edited: bool) -> float:
        """The mean log-probability of the target's tokens behind the text, one full pass a token."""
        prompt = tokenize_prompt(self.model, text, target)
        total = 0.0
        for number, token in enumerate(prompt.target_ids):
            read = prompt.ids[: prompt.last + 1 + number]
            logits = self._logits(read, subject_last(prompt, self.fact.subject), edited=edited)
            total += float(logits.log_softmax(-1)[token])
        return total / len(prompt.target_ids)

    def _logits(self, ids: Sequence[int], at: int, *, edited: bool) -> Tensor:
        def add(out: Tensor, hook: Any) -> Tensor:
            changed = out.clone()
            changed[0, at] += self.delta
            return changed

        batch, _ = pad_rows(self.model, [tuple(ids)])
        hooks: list[Any] = [(self.model.hook_name("mlp_out", LAYER), add)] if edited else []
        return self.model.unembed(self.model.run(batch, hooks=hooks)[0, -1])

    def contexts(self) -> list[tuple[str, int, int]]:
        """Each context with its target's forced tokens, and where its subject stands."""
        found: list[tuple[str, int, int]] = []
        for context in CONTEXTS:
            prompt = tokenize_prompt(self.model, context.replace("{}", self.fact.text), self.fact.target_new)
            found.append((context, subject_last(prompt, self.fact.subject), len(prompt.forced)))
        return found


def last(result: Any, name: str) -> float:
    return float(result.history[name].iloc[-1])


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> LensModel:
    from tests.support.tiny import load_tiny

    return load_tiny(checkpoints("gpt2"), exact=True)


def test_answers_of_prompts_brought_along(model: LensModel):
    keep = KeepAnswers()
    results = rome(model, keep).edit_many(model, [FACT, OTHER])
    for fact, result in zip((FACT, OTHER), results, strict=True):
        plain = Plain(model, fact, result)
        divergence = 0.0
        for (text,) in ([one] for one in keep.prompts(model, [fact])[0]):
            before, now = (plain.values(text, [], edited=edited)["next"] for edited in (False, True))
            divergence += float((before.exp() * (before - now)).sum()) / len(keep.texts)
        assert divergence > 1e-3
        assert last(result, "keep_answers") == pytest.approx(keep.weight * divergence, rel=1e-9)
        assert result.history["keep_answers"].iloc[0] == pytest.approx(0.0, abs=1e-12)
        terms = result.history[["nll", "kl", "weight_decay", "keep_answers"]].sum(axis=1)
        assert (terms - result.history["loss"]).abs().max() < 1e-12


def test_hidden_states_and_attention_of_every_token(model: LensModel):
    norm, patterns = KeepNorm(), KeepPatterns()
    result = rome(model, norm, patterns).edit(model, FACT)
    plain = Plain(model, FACT, result)
    sites = [("resid_post", 2), ("pattern", 1), ("pattern", 2)]
    expected = {"keep_norm": 0.0, "all attention": 0.0}
    for context, at, n_forced in plain.contexts():
        # "Dutch" may be several tokens: the row holds those that are forced.
        ids = tokenize_prompt(model, context.replace("{}", FACT.text), FACT.target_new).ids[:n_forced]
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        before, now = (plain.values(text, sites, edited=edited) for edited in (False, True))
        change = now["resid_post", 2].norm(dim=-1) - before["resid_post", 2].norm(dim=-1)
        expected["keep_norm"] += 0.5 * float(change[at:].square().mean()) / len(CONTEXTS)
        for layer in (1, 2):
            moved = (now["pattern", layer] - before["pattern", layer])[:, at:].square().sum()
            expected["all attention"] += 3.0 * float(moved) / len(CONTEXTS)
    for name, value in expected.items():
        assert value > 1e-4
        assert last(result, name) == pytest.approx(value, rel=1e-9)


def test_the_edit_layers_own_output_is_seen(model: LensModel):
    result = rome(model, KeepNorm(layer=LAYER)).edit(model, FACT)
    assert last(result, "keep_norm") > 0


def test_a_large_weight_keeps_what_it_is_about(model: LensModel):
    drift = [
        last(rome(model, KeepAnswers(weight=w), steps=8).edit(model, FACT), "keep_answers") / w for w in (0.01, 30)
    ]
    assert drift[1] < 0.5 * drift[0]


@pytest.mark.parametrize("kind", [ROME, MEMIT, PMET])
def test_together_as_alone_beside_sadr_and_when_facts_stop(model: LensModel, kind: type[Any]):
    moment = torch.eye(model.d_mlp)
    place: dict[str, Any] = {"layer": 1, "second_moment": moment}
    if kind is not ROME:
        place = {"layers": (0, 1), "second_moment": {0: moment, 1: moment}, "second_moment_weight": 1.0}
    editor = kind(
        **place,
        steps=5,
        lr=1.0,
        contexts=CONTEXTS,
        early_stop_loss=3.0,
        regularizers=(SADR(gamma=0.1), KeepAnswers(texts=("{} was", "{}'s")), SADR(gamma=0.2, heads="all")),
    )
    together = editor.edit_many(model, [FACT, OTHER])
    for result, fact in zip(together, (FACT, OTHER), strict=True):
        alone = editor.edit(model, fact)
        assert list(result.history.columns) == [
            *("step", "loss", "nll", "kl", "weight_decay"), "sadr", "keep_answers", "sadr_2", "probability",
        ]  # fmt: skip
        assert len(alone.history) == len(result.history)
        torch.testing.assert_close(
            torch.tensor(alone.history.to_numpy()), torch.tensor(result.history.to_numpy()), rtol=1e-8, atol=1e-9
        )


def test_names():
    assert column_names([SADR(), SADR(), KeepPatterns(), KeepNorm()]) == [
        "sadr",
        "sadr_2",
        "all attention",
        "keep_norm",
    ]

    class GuardedSADR(KeepNorm):
        pass

    assert column_names([GuardedSADR()]) == ["guarded_sadr"]


def test_a_prompt_without_the_subject_fails_its_fact_alone(model: LensModel):
    class Wrong(KeepAnswers):
        def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[list[str]]:
            return [["The weather is"] if fact == FACT else [fact.subject] for fact in facts]

    with pytest.raises(EditError, match="the subject 'Danielle Darrieux' does not occur in 'The weather is'") as caught:
        rome(model, Wrong()).edit_many(model, [FACT, OTHER])
    assert [result is None for result in caught.value.results] == [True, False]
