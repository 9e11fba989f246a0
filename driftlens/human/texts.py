"""The texts that a study compares: generated under two edits, or taken from two runs.

Both texts of a pair continue the same prompt with the same random numbers, so the texts agree as long as both edits
agree about the next token (paper, E.4: prompts made of subject and relation, at most 100 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from driftlens.errors import DriftlensError
from driftlens.human.comparison import TextPair
from driftlens.progress import OnDone

if TYPE_CHECKING:
    import pandas as pd

    from driftlens.data import Record
    from driftlens.edits import Edit
    from driftlens.models import LensModel

__all__ = ["MAX_TOKENS", "pairs_of_texts", "write_pairs"]

MAX_TOKENS = 100
"""The length of a text in tokens, prompt included."""


def write_pairs(
    model: LensModel,
    records: Sequence[Record],
    baseline: Sequence[Edit | None],
    challenger: Sequence[Edit | None],
    *,
    setting: str,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    top_k: int = 5,
    batch_size: int = 64,
    on_rows: OnDone | None = None,
) -> list[TextPair]:
    """Continue every record's (s, r) prompt under both of its edits.

    Args:
        model: the vanilla model.
        records: the edit requests.
        baseline: the baseline's edit of each record; ``None`` is the vanilla model.
        challenger: the challenger's edit of each record.
        setting: the setting of the pairs, such as "ROME".
        seed: the seed of sampling; both texts of a pair use the same random numbers.
        max_tokens: the length of a text in tokens, prompt included.
        top_k: each token is drawn from the ``top_k`` most probable ones.
        batch_size: rows at a time.
        on_rows: called with (texts written, texts in all).

    Raises:
        DriftlensError: the numbers of records and edits differ, or an error of :func:`driftlens.generate`.
    """
    from driftlens.evaluation.generation import generate

    for name, edits in (("baseline", baseline), ("challenger", challenger)):
        if len(edits) != len(records):
            raise DriftlensError(f"{len(records)} records but {len(edits)} edits of the {name}; give one for each")
    prompts = [record.fact.text for record in records]
    written = generate(
        model,
        [*prompts, *prompts],
        [*baseline, *challenger],
        seed=seed,
        keys=[record.index for record in records] * 2,
        max_tokens=max_tokens,
        top_k=top_k,
        batch_size=batch_size,
        on_rows=on_rows,
    )
    texts = [generation.continuation for generation in written]
    sides = zip(records, texts[: len(records)], texts[len(records) :], strict=True)
    return [
        TextPair(setting=setting, fact=record.fact, prompt=record.fact.text, baseline=one, challenger=other)
        for record, one, other in sides
    ]


def pairs_of_texts(
    records: Sequence[Record], baseline: pd.DataFrame, challenger: pd.DataFrame, *, setting: str
) -> list[TextPair]:
    """Pair the texts of two tables: for each record, those of the first prompt that both tables have.

    Args:
        records: the edit requests.
        baseline: a table with the columns ``record, prompt_index, prompt, text`` (prompt included), such as a benchmark
            run's ``generations``.
        challenger: the same for the challenger.
        setting: the setting of the pairs.

    Raises:
        DriftlensError: the tables have no text in common, or were made from other records.
    """
    ours, theirs = _texts(baseline), _texts(challenger)
    pairs: list[TextPair] = []
    for record in records:
        shared = sorted(at for index, at in ours.keys() & theirs.keys() if index == record.index)
        if not shared:
            continue
        (prompt, one), (other_prompt, other) = (texts[record.index, shared[0]] for texts in (ours, theirs))
        if prompt != other_prompt or record.fact.subject not in prompt:
            raise DriftlensError(
                f"the texts of record {record.index} continue {prompt!r} and {other_prompt!r}, but the data's record "
                f"is about {record.fact.subject!r}; name the data of both runs (--data)"
            )
        pairs.append(TextPair(setting=setting, fact=record.fact, prompt=prompt, baseline=one, challenger=other))
    if not pairs:
        raise DriftlensError("the two runs have no generated text in common; compare runs of the same records")
    return pairs


def _texts(table: pd.DataFrame) -> dict[tuple[int, int], tuple[str, str]]:
    """Each prompt and its continuation, by record and prompt index."""
    columns = ("record", "prompt_index", "prompt", "text")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DriftlensError(f"the table of texts lacks the column {missing[0]!r}; expected {', '.join(columns)}")
    rows = zip(*(table[name].tolist() for name in columns), strict=True)
    return {(int(record), int(at)): (str(prompt), str(text)[len(str(prompt)) :]) for record, at, prompt, text in rows}
