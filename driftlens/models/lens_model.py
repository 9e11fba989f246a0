"""`LensModel`: a model with its tokenizer, its hash, and the changes applied to its weights.

:class:`driftlens.models.wrapped.WrappedModel` provides passes over its blocks, hook points and weights by site.
"""

import copy
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.chat import RAW, ChatFrame, chat_frame
from driftlens.models.encoding import Encoding, adds_bos, encode, own_tokenizer, special_tokens
from driftlens.models.export import export
from driftlens.models.families import Family
from driftlens.models.fingerprint import DIGITS, Fingerprint, tokenizer_digest
from driftlens.models.pass_costs import initial_pass_cost
from driftlens.models.published import title
from driftlens.models.self_check import WINDOW, SelfCheck, check_rows, self_check
from driftlens.models.sharing import Written
from driftlens.models.sites import Site
from driftlens.models.wrapped import WrappedModel

__all__ = ["LensModel", "check_loaded"]


class LensModel(WrappedModel):
    """A TransformerLens model with raw weights, in eval mode, with frozen parameters.

    `model` is a `TransformerBridge` of transformer-lens 4.x or an unprocessed `HookedTransformer` of 3.9; it is put
    into eval mode, and its parameters are frozen. `tokenizer` replaces the one inside the model. `source` is a text
    that says where the weights come from. `check` runs the self-check, whose result is stored as `checked`. `family`
    describes the model's architecture if driftlens does not know it.
    """

    frame: ChatFrame = RAW
    """The text around every prompt: none, or a chat template (`chat`)."""

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        source: str | None = None,
        check: bool = True,
        tokenizer: Any = None,
        family: Family | None = None,
    ) -> None:
        super().__init__(model, name=name, family=family)
        self._fingerprint = Fingerprint(self._backend)
        self._known = (-1, "")  # at which write the hash was taken, and the hash
        self._unchanged = 0
        self.source: str = source or f"a {type(model).__name__} of your own"
        self._tokenizer: Any = tokenizer if tokenizer is not None else own_tokenizer(model.tokenizer)
        self.pass_cost = initial_pass_cost(self)
        self.checked: SelfCheck | None = self._check() if check else None

    @property
    def title(self) -> str:
        """The model's short name, without owner or path, for display."""
        return title(self.name)

    def __repr__(self) -> str:
        chat = ", chat" if self.frame else ""
        return f"LensModel({self.name!r}, {self.family}, {self.n_layers} layers, {self.dtype}, {self.device}{chat})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import lens_model

        return lens_model(self)

    # --- what it is now, and whose ---

    @property
    def model_hash(self) -> str:
        """A hash (20 hexadecimal digits) of the model's current weights, configuration and tokenizer.

        It covers applied edits and any other change of a weight, however small. All weights are read each time, at
        about the speed of memory.

        Raises:
            DriftlensError: the model has a foreign hook, whose effect is unknown.
        """
        if hooks := self.foreign_hooks:
            raise DriftlensError(
                f"a hook is on the model at {hooks[0]}, so what is computed with it cannot be told from the model's "
                "own; remove it first, with reset_hooks() if it is TransformerLens's"
            )
        with self.exclusive():
            if self._unchanged and self._known[0] == self._shared.writes:
                return self._known[1]
            parts = [self._fingerprint.now(), self._tokenizer_digest]
            found = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGITS]
            self._known = (self._shared.writes, found)
        return found

    @contextmanager
    def unchanged(self) -> Generator[None]:
        """Declare that only `rewritten` changes weights inside the block, so that `model_hash` reads them once."""
        with self.exclusive():
            if not self._unchanged:
                self._known = (-1, "")
            self._unchanged += 1
        try:
            yield
        finally:
            with self.exclusive():
                self._unchanged -= 1

    @cached_property
    def _tokenizer_digest(self) -> str:
        return "" if self._tokenizer is None else tokenizer_digest(self._tokenizer)

    @property
    def written(self) -> tuple[Written, ...]:
        """The changes that are applied to the weights at the moment, in the order of application."""
        return tuple(self._shared.written)

    @contextmanager
    def rewritten(
        self, change: Callable[[Site, Tensor], Tensor], *, sites: Iterable[Site], what: object
    ) -> Generator[None]:
        """Write `change(site, weight)` into `sites`, and restore every bit on leaving, even after an exception.

        Until then, the thread has exclusive use of the model, and `written` lists `what`.

        Raises:
            DriftlensError: the model is quantised; or nested contexts are not left in reverse order, in which case the
                weights are restored when the last one is left.
        """
        self._require_writable("no edit can be written into its weights")
        with self.exclusive():
            entry = Written(what=what, before=self.model_hash)
            entry.saved.update({site: self.linear(site)[0].detach().clone() for site in sites})
            stack = self._shared.written
            stack.append(entry)
            self._shared.writes += 1
            try:
                with torch.no_grad():
                    for site in entry.saved:
                        weight = self.linear(site)[0]
                        weight.copy_(change(site, weight))
                yield
            finally:
                entry.ended = True
                self._shared.writes += 1
                in_order = stack[-1] is entry
                while stack and stack[-1].ended:
                    with torch.no_grad():
                        for site, before in stack.pop().saved.items():
                            self.linear(site)[0].copy_(before)
                if not in_order:
                    raise DriftlensError(
                        "edits that are applied inside one another must be left in reverse order; this one is still in "
                        "the weights until the ones inside it are left"
                    )

    def export(self, folder: str | PathLike[str], weights: Mapping[Site, Tensor] | None = None) -> None:
        """Write this model and its tokenizer to a Hugging Face folder, with some `[d_in, d_out]` weights replaced."""
        self._require_writable("it cannot be exported")
        export(self, self._backend, folder, weights or {}, tokenizer=self.tokenizer)

    # --- tokens ---

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's own fast tokenizer."""
        if self._tokenizer is None:
            raise DriftlensError(f"model {self.name} has no tokenizer; give one: LensModel(model, tokenizer=...)")
        return self._tokenizer

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins every text with a BOS, so that the text's positions begin at 1."""
        return adds_bos(self.tokenizer)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the tokenizer's special tokens."""
        return special_tokens(self.tokenizer)

    @cached_property
    def pad_id(self) -> int:
        """A token id for padding columns; its value has no effect, because padding is masked."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and 0 <= token < self.d_vocab:
                return int(token)
        return 0

    def chat(self, system: str | None = None) -> "LensModel":
        """The same model with shared weights, which reads every prompt as a user's message in its chat template.

        All functions that take a prompt then work on chats: edits, traces, patches, drift, evaluation, generation, the
        clinic. Prompts, facts and records do not change. When they are tokenised, the template is put around them, with
        `system` as the system prompt if given, and a target follows at the beginning of the assistant's answer. Context
        prefixes and distractors are part of the user's message.

        Raises:
            DriftlensError: the tokenizer has no chat template, or its template accepts no system prompt.
        """
        view = copy.copy(self)
        view._known, view._unchanged = (-1, ""), 0  # what is promised for this one is not promised for that
        view.frame = chat_frame(self.tokenizer, system)
        return view

    def encode(self, text: str) -> Encoding:
        """Token ids and character offsets of a plain text, with the BOS that the tokenizer adds; never truncated."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str], *, complete: bool = False) -> list[Encoding]:
        """As `encode`, for many texts at once, which is faster; texts that are `complete` get no BOS."""
        encodings = encode(self.tokenizer, texts, complete=complete)
        for encoding in encodings:
            unknown = next((token for token in encoding.ids if token >= self.d_vocab), None)
            if unknown is not None:
                raise DriftlensError(
                    f"the tokenizer gives token {unknown} ({self.tokenizer.decode([unknown])!r}), but {self.name} has "
                    f"only {self.d_vocab} tokens; leave it out of the text, or use the tokenizer made for the model"
                )
        return encodings

    def _check(self) -> SelfCheck:
        with self._backend.narrowed(WINDOW):
            rows = check_rows(self.d_vocab, self.n_ctx)
            return self_check(self, [self._backend.reference_logits(row.to(self.device)) for row in rows])


def check_loaded(model: object) -> None:
    """Check that a model is a `LensModel`.

    Raises:
        DriftlensError: it is a name, or a model of another library.
    """
    if isinstance(model, str | PathLike):
        raise DriftlensError(f"{str(model)!r} is a model's name; load it first: load_model({str(model)!r})")
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if kinds & {"TransformerBridge", "HookedTransformer"}:
        raise DriftlensError(f"a {type(model).__name__} has to be wrapped first: LensModel(model)")
    if "PreTrainedModel" in kinds:
        raise DriftlensError(f"a {type(model).__name__} cannot be used as it is; give its folder to load_model(folder)")
