"""ROME's value optimisation (Eq. 1) with SADR (Eq. 2) on plain Hugging Face, as slow and as plain as can be.

Whole sequences, one context at a time, one fact at a time, every layer and the head at every position, nothing reused;
tokens by tokenising the pieces of a text. Nothing of driftlens takes part.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.plain import Edit, PlainModel


@dataclass(kw_only=True)
class NaiveValue:
    """The objective of one fact; `subject`, `prompt` (with a {}) and `target` as plain strings."""

    plain: PlainModel
    subject: str
    prompt: str
    target: str
    layer: int
    contexts: tuple[str, ...]
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    essence: str = "{} is a"
    essence_kl: str = "edited_from_vanilla"
    gamma: float = 0.0
    heads: str = "selected"
    sadr_layers: tuple[int, ...] | None = None
    detach_attention: bool = False
    eps: float = 1e-8
    selection: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.text = self.prompt.replace("{}", self.subject)
        self.rows = [context.replace("{}", self.text) for context in self.contexts]
        bare = torch.tensor([self.ids(self.text)])
        at = self.subject_last(self.text, 0)
        self.target_init = self.plain.value("mlp_out", self.layer, bare)[0, at]
        self.above = range(self.layer + 1, len(self.plain.blocks))
        zero = torch.zeros_like(self.target_init)
        self.vanilla_rows = [self._pass(j, zero)[1] for j in range(len(self.rows))]
        self.vanilla_essence = self._essence(zero)

    def ids(self, text: str) -> list[int]:
        return self.plain.tokenizer(text)["input_ids"]

    def subject_last(self, text: str, start: int) -> int:
        """The subject's last token: as many tokens as the text up to there has, as words are tokenised apart."""
        end = text.index(self.subject, start) + len(self.subject)
        return len(self.ids(text[:end])) - 1

    def start_of(self, j: int) -> int:
        return self.contexts[j].index("{}")

    def _edits(self, at: int, delta: Tensor, patterns: dict[int, Tensor]) -> list[Edit]:
        def add(output: Tensor) -> Tensor:
            here = torch.zeros_like(output)
            here[:, at] = 1
            return output + here * delta

        def keep(layer: int) -> Any:
            def see(pattern: Tensor) -> Tensor | None:
                patterns[layer] = pattern
                return pattern.detach() if self.detach_attention else None

            return see

        return [("mlp_out", self.layer, add), *(("pattern", n, keep(n)) for n in self.above)]

    def _pass(self, j: int, delta: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Mean NLL of the target in context j, and what the last prompt token attends to above the edit."""
        text = self.rows[j]
        prompt, whole = self.ids(text), self.ids(f"{text} {self.target}")
        assert whole[: len(prompt)] == prompt, "choose prompts whose tokens do not depend on the target"
        patterns: dict[int, Tensor] = {}
        at = self.subject_last(text, self.start_of(j))
        logits = self.plain.run(torch.tensor([whole]), edits=self._edits(at, delta, patterns))[1]
        targets = range(len(prompt), len(whole))
        nll: Any = -sum(logits[0, k - 1].log_softmax(-1)[whole[k]] for k in targets) / len(targets)
        return nll, {n: pattern[0, :, len(prompt) - 1] for n, pattern in patterns.items()}

    def _essence(self, delta: Tensor) -> Tensor:
        text = self.essence.replace("{}", self.subject)
        at = self.subject_last(text, self.essence.index("{}"))
        logits = self.plain.run(torch.tensor([self.ids(text)]), edits=self._edits(at, delta, {}))[1]
        return logits[0, at].log_softmax(-1)

    def terms(self, delta: Tensor, *, fixed_selection: bool = False) -> dict[str, Tensor]:
        """The terms of the loss at δ; with `fixed_selection` the heads are those of the call before."""
        nll: Any = 0
        drift: Any = torch.zeros((), dtype=delta.dtype)
        probability = 0.0
        for j in range(len(self.rows)):
            row_nll, edited = self._pass(j, delta)
            nll = nll + row_nll / len(self.rows)
            probability += float((-row_nll.detach()).exp()) / len(self.rows)
            subject = self.subject_last(self.rows[j], self.start_of(j))
            for n in self.above:
                if self.sadr_layers is not None and n not in self.sadr_layers:
                    continue
                before, after = self.vanilla_rows[j][n].detach(), edited[n]
                if not fixed_selection:
                    chosen = after[:, subject] > before[:, subject].max()
                    self.selection[j, n] = torch.ones_like(chosen) if self.heads == "all" else chosen
                for head in self.selection[j, n].nonzero().flatten().tolist():
                    p, q = before[head] + self.eps, after[head] + self.eps
                    drift = drift + (p * (p / q).log()).sum() / len(self.rows)
        now, before = self._essence(delta), self.vanilla_essence
        p, q = (now, before) if self.essence_kl == "edited_from_vanilla" else (before, now)
        return {
            "nll": nll,
            "kl": self.kl_factor * (p.exp() * (p - q)).sum(),
            "weight_decay": self.weight_decay * delta.norm() / self.target_init.norm() ** 2,
            "sadr": self.gamma * drift,
            "probability": torch.tensor(probability, dtype=torch.float64),
        }

    def loss(self, delta: Tensor, *, fixed_selection: bool = False) -> Tensor:
        terms = self.terms(delta, fixed_selection=fixed_selection)
        return terms["nll"] + terms["kl"] + terms["weight_decay"] + terms["sadr"]

    def optimize(
        self, *, steps: int, lr: float, clamp: float, early_stop_loss: float
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """The published loop, line by line."""
        delta = torch.zeros_like(self.target_init).requires_grad_()
        optimizer = torch.optim.Adam([delta], lr=lr)
        history: list[dict[str, float]] = []
        for step in range(steps):
            optimizer.zero_grad()
            terms = self.terms(delta)
            loss = terms["nll"] + terms["kl"] + terms["weight_decay"] + terms["sadr"]
            history.append({"loss": loss.item(), **{name: term.item() for name, term in terms.items()}})
            if loss < early_stop_loss:
                break
            if step == steps - 1:
                break
            loss.backward()
            optimizer.step()
            most = clamp * self.target_init.norm()
            if delta.norm() > most:
                with torch.no_grad():
                    delta[...] = delta * most / delta.norm()
        return delta.detach(), history
