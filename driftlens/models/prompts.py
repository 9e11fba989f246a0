"""Tokenise prompts, locate subjects and targets, and make batches of rows.

All positions in driftlens are found here, in one way. A prompt and its target are joined as *text* (in a chat, with the
template around the prompt), the text is tokenised once, and the tokenizer's offset mapping converts character spans to
tokens. Token strings are never searched. A BOS token, a leading space or a token that splits a UTF-8 character
therefore cannot shift a position (some of the benchmark's targets end in the middle of a character).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.data.joints import join, without_blanks
from driftlens.errors import DriftlensError
from driftlens.models import RAW, Batch, ChatFrame, Encoding, LensModel


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A tokenised prompt, with or without a target.

    ``ids`` holds the prompt's tokens (with BOS if the tokenizer adds one), then the target's.  The first ``n_prompt``
    belong to the prompt, including a chat template around it.  ``offsets`` are character spans in ``read`` joined with
    the target (:mod:`driftlens.data.joints`).
    """

    text: str
    target: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    n_prompt: int
    frame: ChatFrame = RAW

    @property
    def read(self) -> str:
        """The text that the model reads: ``text``, in a chat with the template around it."""
        return self.frame.around(self.text)

    def spans(self) -> list[tuple[int, int]]:
        """``offsets``, counted from the beginning of ``text``; those of a template before it are negative."""
        lead = len(self.frame.before)
        return [(start - lead, stop - lead) for start, stop in self.offsets]

    @property
    def last(self) -> int:
        """Index of the last *prompt* token, whose attention drifts and whose logits predict the target."""
        return self.n_prompt - 1

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's own tokens."""
        return self.ids[: self.n_prompt]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The target's tokens; empty for a bare prompt."""
        return self.ids[self.n_prompt :]

    @property
    def forced(self) -> tuple[int, ...]:
        """The tokens that a model reads to score the target: the prompt and the target without its last token."""
        return self.ids[:-1] if self.target else self.ids

    def tokens_of(self, start: int, stop: int) -> range:
        """The tokens that overlap the characters ``start`` … ``stop`` of ``text``.

        Raises:
            DriftlensError: no token overlaps the span.
        """
        inside = [i for i, (a, b) in enumerate(self.spans()) if a < stop and b > start]
        if not inside:
            raise DriftlensError(
                f"no token covers characters {start}–{stop} of {self.text!r}; expected a span inside the prompt"
            )
        return range(inside[0], inside[-1] + 1)


def tokenize_prompt(model: LensModel, text: str, target: str = "") -> TokenizedPrompt:
    """Tokenise ``text``, joined with ``target`` when one is given.

    :func:`driftlens.data.joints.join` joins them as text.  A token that spans the joint counts as the target's first.

    Raises:
        DriftlensError: the text is empty, or the tokens exceed the model's context.
    """
    return tokenize_prompts(model, [(text, target)])[0]


def tokenize_prompts(model: LensModel, pairs: Sequence[tuple[str, str]]) -> list[TokenizedPrompt]:
    """As :func:`tokenize_prompt`, for many pairs (text, target) at once, which is faster."""
    found: list[TokenizedPrompt] = []
    for prompt in try_tokenize_prompts(model, pairs):
        if isinstance(prompt, DriftlensError):
            raise prompt
        found.append(prompt)
    return found


def try_tokenize_prompts(model: LensModel, pairs: Sequence[tuple[str, str]]) -> list[TokenizedPrompt | DriftlensError]:
    """As :func:`tokenize_prompts`, but with the error in place of a pair that cannot be read."""
    frame = model.frame
    cleaned = [(without_blanks(text), target.strip()) for text, target in pairs]
    # What ends in a template's blank loses it like any other: the joint has its own.
    read = [without_blanks(frame.around(text)) for text, _ in cleaned]
    whole = [
        join(text, target, special_tokens=model.special_tokens) if target else text
        for text, (_, target) in zip(read, cleaned, strict=True)
    ]
    encodings = model.encode_many(whole, complete=frame.complete)
    return [
        _tokenized(model, *pair, len(text), encoding)
        for pair, text, encoding in zip(cleaned, read, encodings, strict=True)
    ]


def _tokenized(
    model: LensModel, text: str, target: str, length: int, encoding: Encoding
) -> TokenizedPrompt | DriftlensError:
    if not text.strip():
        return DriftlensError("the prompt is empty; give some text to read the model's prediction after")
    n_prompt = len(encoding.ids)
    if target:
        n_prompt = next((i for i, (_, stop) in enumerate(encoding.offsets) if stop > length), n_prompt)
        if n_prompt == len(encoding.ids):
            return DriftlensError(
                f"the target {target!r} has no token of its own behind {text!r}; give a longer target"
            )
    if len(encoding.ids) > model.n_ctx:
        return DriftlensError(
            f"the prompt {text[:40]!r}… has {len(encoding.ids)} tokens with its target, but {model.name} "
            f"reads at most {model.n_ctx}; shorten it"
        )
    return TokenizedPrompt(
        text=text,
        target=target,
        ids=tuple(encoding.ids),
        offsets=tuple(encoding.offsets),
        n_prompt=n_prompt,
        frame=model.frame,
    )


def find_subject(text: str, subject: str, *, start: int = 0) -> tuple[int, int]:
    """Character span of the first occurrence of ``subject`` in ``text`` at or after ``start``.

    In a distracted prompt, the edited subject's first occurrence is in the distractor; over-attention is measured
    there.

    Raises:
        DriftlensError: the subject does not occur.
    """
    at = text.find(subject, start)
    if at < 0:
        raise DriftlensError(f"the subject {subject!r} does not occur in {text!r}; expected it there word for word")
    return at, at + len(subject)


def subject_tokens(prompt: TokenizedPrompt, subject: str, *, start: int = 0) -> range:
    """The tokens of ``subject`` in ``prompt``; the last of them is ``subject_last``."""
    return prompt.tokens_of(*find_subject(prompt.text, subject, start=start))


def subject_last(prompt: TokenizedPrompt, subject: str, *, start: int = 0) -> int:
    """Index of the last token of ``subject``: the position of the edit and of attention drift."""
    return subject_tokens(prompt, subject, start=start)[-1]


@dataclass(frozen=True, kw_only=True)
class BranchedRow:
    """Token sequences as one row: a tree in which sequences share the columns of common prefixes.

    The columns after column ``i``, up to ``until[i]``, continue it; see :class:`~driftlens.models.Batch`.
    ``columns[n][k]`` is the column of token ``k`` of sequence ``n``.
    """

    ids: tuple[int, ...]
    until: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]


def branched(sequences: Sequence[Sequence[int]]) -> BranchedRow:
    """Make one row of all ``sequences``; a sequence that is a prefix of another needs no columns of its own."""
    ids: list[int] = []
    until: list[int] = []
    columns: list[list[int]] = [[] for _ in sequences]

    def grow(members: Sequence[int], depth: int) -> None:
        """Columns for these sequences, which are alike in their first ``depth`` tokens, from there on."""
        first = len(ids)
        while True:
            by_token: dict[int, list[int]] = {}
            for n in members:
                if depth < len(sequences[n]):
                    by_token.setdefault(sequences[n][depth], []).append(n)
            if len(by_token) != 1:
                break
            ((token, members),) = by_token.items()
            for n in members:
                columns[n].append(len(ids))
            ids.append(token)
            depth += 1
        until.extend([0] * (len(ids) - first))
        trunk = range(first, len(ids))
        for own in by_token.values():
            grow(own, depth)
        for column in trunk:
            until[column] = len(ids)

    grow(range(len(sequences)), 0)
    return BranchedRow(ids=tuple(ids), until=tuple(until), columns=tuple(map(tuple, columns)))


def pad_rows(
    model: LensModel,
    rows: Sequence[Sequence[int]],
    *,
    align: Sequence[int] | None = None,
    column: int | None = None,
    until: Sequence[Sequence[int]] | None = None,
) -> tuple[Batch, Int[Tensor, "rows"]]:
    """Pad token rows of different lengths to one batch.

    Without ``align``, rows are padded on the right.  With it, they are padded on both sides, so that the token
    ``align[i]`` of each row *i* is in the same ``column``, by default the first that all rows reach.  ``until`` are
    those of :class:`BranchedRow`, for rows with several sequences.

    Returns:
        The batch, and for each row the column of its first token.
    """
    shared = max(align, default=0) if align is not None and column is None else column or 0
    shifts = [0] * len(rows) if align is None else [shared - a for a in align]
    width = max(shift + len(row) for shift, row in zip(shifts, rows, strict=True))

    def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows seq"]:
        return torch.tensor(
            [[*[0] * shift, *row, *[0] * (width - shift - len(row))] for shift, row in zip(shifts, rows, strict=True)],
            device=model.device,
        )

    first = torch.tensor(shifts, device=model.device)
    columns = torch.arange(width, device=model.device)
    length = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (columns >= first[:, None]) & (columns < (first + length)[:, None])
    # Where every column goes on to the row's end, all rows are plain ones.
    forked = until is not None and any(end < len(own) for own in until for end in own)
    ends = padded(until) + first[:, None] if until is not None and forked else None
    return Batch(tokens=padded(rows), mask=mask, until=ends), first


def target_positions(
    prompts: Sequence[TokenizedPrompt], shifts: Int[Tensor, "rows"]
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Locate the predictions of the targets of ``prompts`` in a batch that :func:`pad_rows` made of ``forced``.

    Returns:
        Three tensors with one entry per target token: its row, the column whose logits predict it, and its
        id.
    """
    entries = [
        (row, prompt.last + k, token) for row, prompt in enumerate(prompts) for k, token in enumerate(prompt.target_ids)
    ]
    rows, columns, ids = torch.tensor(entries, device=shifts.device).unbind(1)
    return rows, columns + shifts[rows], ids


Target = tuple[int, Sequence[int], Sequence[int]]
"""A target in a batch: its row, the columns whose logits predict its tokens, and these tokens."""


def read_places(
    model: LensModel, rows: int, targets: Sequence[Target]
) -> tuple[Int[Tensor, "rows read"], list[Target]]:
    """For each row, the columns that predict target tokens, and the targets with indexes into these columns.

    The columns are those for ``model.run(..., read=...)``.  A row with fewer columns repeats its last one; a row
    without any has column 0.
    """
    wanted: list[dict[int, int]] = [{} for _ in range(rows)]
    places: list[Target] = []
    for row, columns, tokens in targets:
        own = wanted[row]
        places.append((row, [own.setdefault(column, len(own)) for column in columns], tokens))
    most = max(map(len, wanted))
    lists = [list(own) or [0] for own in wanted]
    read = torch.tensor([own + own[-1:] * (most - len(own)) for own in lists], device=model.device)
    return read, places


def mean_log_probabilities(
    model: LensModel,
    resid: Float[Tensor, "rows seq d_model"],
    targets: Sequence[Target],
) -> Float[Tensor, "targets"]:
    """The mean log-probability of each target's tokens, in nats, float32 or better.

    Args:
        model: the model; its head is run once for every predicting position.
        resid: the residual stream after the last block.
        targets: for each target, its row, the columns whose logits predict its tokens, and these tokens.
    """
    places: dict[tuple[int, int], int] = {}
    predicted: list[tuple[int, int, int]] = []  # the target, the place, the token
    for number, (row, columns, tokens) in enumerate(targets):
        for column, token in zip(columns, tokens, strict=True):
            predicted.append((number, places.setdefault((row, column), len(places)), token))
    rows, columns_read = torch.tensor(list(places), device=model.device).unbind(1)
    of, place, token_id = torch.tensor(predicted, device=model.device).unbind(1)
    precision = torch.promote_types(resid.dtype, torch.float32)
    logits = model.unembed(resid[rows, columns_read]).to(precision)
    log_probability = logits[place, token_id] - logits.logsumexp(dim=-1)[place]
    total = torch.zeros(len(targets), device=model.device, dtype=precision).index_add(0, of, log_probability)
    return total / torch.bincount(of, minlength=len(targets))
