"""Guards: prompts about a subject that are unrelated to the edited fact.

They need neither labels nor data. There are three kinds:

1. **questions** about the subject, from a list that suits people, places and things (:data:`QUESTIONS`), or from your
   own list;
2. **own words**: the unedited model's continuations of "{s}", "{s} is", "{s} was" and "{s}'s";
3. **distracted**: the edited statement followed by the same question about another subject, if any are given; otherwise
   the statement followed by the unedited model's continuation.

A text that states the edited relation is not a guard, because the edit has to change what follows it. It is recognised
by its words (:func:`states_relation`); a question also by the unedited model, which answers it as it answers the edit's
prompt.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from driftlens.data import Fact
from driftlens.data.joints import distractor
from driftlens.editors.contexts import sample_tokens
from driftlens.errors import DriftlensError
from driftlens.models import LensModel
from driftlens.models.prompts import TokenizedPrompt, pad_rows, try_tokenize_prompts

__all__ = ["ATTRIBUTES", "FRAMES", "QUESTIONS", "STARTS", "Guards", "states_relation"]

ATTRIBUTES = (
    "nickname", "favourite colour", "height", "weight", "motto", "symbol", "neighbour", "doctor", "lawyer",
    "best friend", "rival", "car", "dog", "phone number", "zodiac sign", "number of fans", "hair style",
    "favourite dish", "teacher", "owner", "shape", "size", "age", "price", "speed", "smell", "taste", "sound",
    "weather", "nearest river", "main ingredient", "material", "history", "colour", "biggest fan", "hobby", "dream",
    "fear", "secret", "voice", "salary", "address", "favourite book", "logo", "website", "temperature", "last word",
    "enemy", "guest", "number of floors",
)  # fmt: skip
"""Attributes that a question can ask for and that the benchmark's tests do not."""

FRAMES = ("The {attribute} of {{}} is", "{{}}'s {attribute} is", "The name of the {attribute} of {{}} is",
          "The {attribute} of {{}} was")  # fmt: skip
"""The forms of the question, used in turn."""

QUESTIONS = (
    *(FRAMES[at % len(FRAMES)].format(attribute=attribute) for at, attribute in enumerate(ATTRIBUTES)),
    "{}'s closest friend is", "{} is best known for", "The history of {} begins in", "{} is made of",
    "The first thing people notice about {} is", "{} can be reached by", "The opposite of {} is",
    "{} is often compared with", "{} belongs to", "{} was influenced by", "{} is larger than", "{} is popular in",
    "{} lives in", "The enemies of {} are", "{} likes to eat", "{} died of", "{} believes in", "{} earns money by",
    "{} is afraid of", "The beginning of {} was", "The best friend of {} is", "The hobby of {} is",
    "The size of {} is",
)  # fmt: skip
"""Questions about a subject.  None asks for a relation that the benchmark's tests ask for."""

STARTS = ("{}", "{} is", "{} was", "{}'s")
"""The beginnings that the model continues, used in turn."""

TRIES = 3
"""How often a text that states the edited relation is sampled again before it is left out."""


@dataclass(frozen=True, kw_only=True)
class Guards:
    """How guards are made; the same settings, model and fact give the same guards, on every device.

    Attributes:
        asked: how many questions to use.
        questions: the questions about the subject, with "{}" for it.
        subjects: other subjects that the edit's question can be asked about, any number of them.
        own_words: how many continuations of :data:`STARTS`.
        distracted: how many texts that begin with the edited statement.
        tokens: how many tokens the model writes; fewer if it ends its text.
        top_k: the model samples from the ``top_k`` most likely tokens.
        seed: seed of the sampling and of the choice of subjects.
    """

    asked: int = 12
    questions: tuple[str, ...] = QUESTIONS
    subjects: tuple[str, ...] = ()
    own_words: int = 0
    distracted: int = 2
    tokens: int = 16
    top_k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("asked", 0), ("own_words", 0), ("distracted", 0), ("tokens", 1), ("top_k", 1)):
            given = getattr(self, name)
            if not isinstance(given, int) or given < least:
                raise DriftlensError(f"{name} is {given!r}; expected a whole number of at least {least}")
        given: Any = self.questions  # a single question is accepted
        questions: tuple[Any, ...] = (given,) if isinstance(given, str) else tuple(given)
        for question in questions:
            if not isinstance(question, str) or question.count("{}") != 1:
                raise DriftlensError(f'questions holds {question!r}; expected texts with one "{{}}" for the subject')
        object.__setattr__(self, "questions", questions)
        subjects: Any = self.subjects  # a single subject is accepted
        names: tuple[Any, ...] = (subjects,) if isinstance(subjects, str) else tuple(subjects)
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise DriftlensError(f"subjects holds {name!r}; expected names, e.g. ('Paris', 'Rome')")
        object.__setattr__(self, "subjects", tuple(dict.fromkeys(name.strip() for name in names)))

    def prompts(self, model: LensModel, facts: Sequence[Fact]) -> list[tuple[str, ...]]:
        """Return the guards of each fact; an empty list if every text states the edited relation.

        Cached per model and its current weights. A fact's guards do not depend on the other facts.
        """
        known = _made.setdefault(model, {})
        state = model.model_hash
        found: list[tuple[str, ...]] = []
        for fact in facts:
            key = (state, self, fact)
            if key not in known:
                known[key] = self._make(model, fact)
            found.append(known[key])
        return found

    def _make(self, model: LensModel, fact: Fact) -> tuple[str, ...]:
        own = [STARTS[at % len(STARTS)].replace("{}", fact.subject) for at in range(self.own_words)]
        statement = distractor(fact.text, fact.target_new)
        others = self._others(fact)
        behind = [f"{statement}{fact.prompt.replace('{}', other)}" for other in others]
        if not others:
            statement = statement.rstrip()  # the model writes the blank
            behind = self._written(model, fact, [statement] * self.distracted, begin=len(statement))
        written = self._written(model, fact, own, begin=len(fact.subject))
        return tuple(dict.fromkeys([*self._asked(model, fact), *written, *behind]))

    def _asked(self, model: LensModel, fact: Fact) -> list[str]:
        """Order the questions by a seed that depends on the subject, without those that concern the edited relation."""
        order = random.Random(_seed(self.seed, fact)).sample(self.questions, len(self.questions))
        others = [one for one in order if not states_relation(fact, one.partition("{}")[2]) and one != fact.prompt]
        chosen = [one.replace("{}", fact.subject) for one in others[: self.asked]]
        return [text for text, same in zip(chosen, _same_question(model, fact, chosen), strict=True) if not same]

    def _others(self, fact: Fact) -> list[str]:
        """The subjects to ask about, without the edited one under a longer or shorter name."""
        mine = fact.subject.casefold()
        others = [one for one in self.subjects if mine not in one.casefold() and one.casefold() not in mine]
        return random.Random(_seed(self.seed, fact)).sample(others, min(self.distracted, len(others)))

    def _written(self, model: LensModel, fact: Fact, starts: Sequence[str], *, begin: int) -> list[str]:
        """The starts with the model's continuations, if the text from ``begin`` on is usable as a guard."""
        kept: dict[int, str] = {}
        for attempt in range(TRIES):
            missing = [at for at in range(len(starts)) if at not in kept]
            if not missing:
                break
            generator = torch.Generator().manual_seed(_seed(self.seed, fact, attempt))
            texts = self._continued(model, [starts[at] for at in missing], generator)
            readable = try_tokenize_prompts(model, [(text, "") for text in texts])
            for at, text, prompt in zip(missing, texts, readable, strict=True):
                wrote = len(text) > len(starts[at]) and not isinstance(prompt, DriftlensError)
                if wrote and not states_relation(fact, text[begin:]):
                    kept[at] = text
        return [kept[at] for at in sorted(kept)]

    def _continued(self, model: LensModel, starts: Sequence[str], generator: torch.Generator) -> list[str]:
        rows = [list(model.encode(start).ids) for start in starts]
        lengths = [max(len(row), min(len(row) + self.tokens, model.n_ctx)) for row in rows]
        written = sample_tokens(model, rows, lengths, top_k=self.top_k, generator=generator)
        ends = set(model.tokenizer.all_special_ids)
        texts: list[str] = []
        for start, row, ids in zip(starts, rows, written, strict=True):
            # A special token begins another document.
            stop = next((at for at in range(len(row), len(ids)) if ids[at] in ends), len(ids))
            # By the difference of two texts: decoded alone, a token may lose its leading blank.
            whole, given = (model.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:stop], row))
            texts.append(start + re.sub(r"\s+", " ", whole[len(given) :]).rstrip())
        return texts


_made: WeakKeyDictionary[LensModel, dict[tuple[str, Guards, Fact], tuple[str, ...]]] = WeakKeyDictionary()


def states_relation(fact: Fact, text: str) -> bool:
    """Whether a text that follows the subject states the edited relation.

    It does if it contains, as whole words and in any case, the fact's old or new object, or the words that follow the
    subject in the prompt. If there are no such words, or only those that a guard may begin with ("The mother tongue of
    {} is"), they do not identify a relation, and only the objects are looked for.
    """
    wording = fact.prompt.partition("{}")[2].strip(" \t\n.,;:?!")
    told = (fact.target_true, fact.target_new, "" if f"{{}} {wording}" in STARTS else wording)
    return any(_holds(text, words) for words in told)


def _same_question(model: LensModel, fact: Fact, texts: Sequence[str]) -> list[bool]:
    """Whether the model answers a text as it answers the edit's prompt.

    The criterion: the old object's first token is at least half as likely after the text as after the prompt. Such a
    text asks for the edited relation in other words.
    """
    if not texts:
        return []
    read = try_tokenize_prompts(model, [(text, fact.target_true) for text in (fact.text, *texts)])
    prompts = [prompt for prompt in read if isinstance(prompt, TokenizedPrompt)]
    if len(prompts) < len(read):
        return [True] * len(texts)  # too long for the model: such a fact has no guards either
    with torch.no_grad():
        batch, first = pad_rows(model, [prompt.ids[: prompt.n_prompt] for prompt in prompts])
        last = first + torch.tensor([prompt.n_prompt - 1 for prompt in prompts], device=first.device)
        resid = model.run(batch)[torch.arange(len(prompts), device=first.device), last]
        ids = torch.tensor([prompt.target_ids[0] for prompt in prompts], device=first.device)
        found = model.unembed(resid).float().softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)
    likely, *others = found.tolist()
    return [other >= likely / 2 for other in others]


def _holds(text: str, words: str) -> bool:
    text, words = (" ".join(each.casefold().split()) for each in (text, words))
    if not any(each.isalnum() for each in words):
        return False
    # With re.ASCII, only ASCII letters and digits extend a word: otherwise no Chinese word would count as a whole word.
    before, after = (r"(?<!\w)" if words[0].isalnum() else ""), (r"(?!\w)" if words[-1].isalnum() else "")
    return re.search(before + re.escape(words) + after, text, re.ASCII) is not None


def _seed(seed: int, fact: Fact, attempt: int = 0) -> int:
    """A seed for each subject, so that its guards do not depend on which other facts are edited."""
    told = f"{seed} {attempt} {fact.subject}"
    return int.from_bytes(hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:7], "big")
