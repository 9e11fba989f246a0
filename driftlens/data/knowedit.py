"""The schema of KnowEdit's files (WikiData-recent, WikiData-counterfact, zsRE) and of EasyEdit's flat files.

`subject`, `prompt` (which contains the subject) and `target_new` are the edit. `ground_truth` is the old target.
WikiData-recent has none, because its facts are new: there the new target is compared with an end-of-text token, as in
ROME's loader of zsRE.

| task | field of its prompts |
| --- | --- |
| paraphrase | `rephrase_prompt` or `rephrase` |
| alias | `portability.Subject_Aliasing` |
| reasoning | `portability.Reasoning` and `portability.Logical_Generalization`, named in the prompts' groups |
| relation | `locality.Relation_Specificity` |
| neighborhood | `locality_prompt` with `locality_ground_truth` (EasyEdit's flat files only) |

An answer is a text, a list of names for one answer, or a list of such lists, one per answer. As in the paper's
benchmark, each answer gives one prompt with its first name. Entries without a prompt or an answer are skipped.
`locality.Forgetfulness`, which quotes the new fact and asks for the old one, is not one of the paper's tasks.
"""

from collections.abc import Iterator

from driftlens.data.reading import Node
from driftlens.data.record import Record
from driftlens.data.tasks import Asked, all_tasks
from driftlens.data.uneditable import fact_of

__all__ = ["NOTHING_TRUE", "parse_knowedit"]

NOTHING_TRUE = "<|endoftext|>"
"""The old target of a fact that had none."""

_PORTABILITY = {"alias": ("Subject_Aliasing",), "reasoning": ("Reasoning", "Logical_Generalization")}


def parse_knowedit(node: Node) -> Record:
    """Parse one entry of the file's list into a record."""
    old = node.get("ground_truth")
    fact = fact_of(
        node.need("prompt"),
        subject=node.need("subject").text(),
        target_true=next(_answers(old), NOTHING_TRUE) if old is not None else NOTHING_TRUE,
        target_new=next(_answers(node.need("target_new")), ""),
    )
    asked = {"rewrite": [Asked(fact.text, fact.target_new)], "paraphrase": []}
    for field in ("rephrase_prompt", "rephrase"):
        if (rephrased := node.get(field)) is not None:
            asked["paraphrase"] += [Asked(text.text(), fact.target_new) for text in rephrased.one_or_many()]
    for task, names in _PORTABILITY.items():
        asked[task] = [entry for name in names for entry in _asked(node.get("portability"), name)]
    asked["relation"] = list(_asked(node.get("locality"), "Relation_Specificity"))
    if (elsewhere := node.get("locality_prompt")) is not None:
        answers = _answers(node.need("locality_ground_truth"))
        asked["neighborhood"] = [Asked(elsewhere.text(), answer) for answer in answers]
    return Record(index=node.record, fact=fact, tasks=all_tasks(fact, asked))


def _asked(blocks: Node | None, name: str) -> Iterator[Asked]:
    block = None if blocks is None else blocks.get(name)
    for entry in [] if block is None else block.items():
        prompt, answers = entry.need("prompt"), entry.need("ground_truth")
        for text in prompt.one_or_many():
            if not text.is_blank():
                yield from (Asked(text.text(), answer, name) for answer in _answers(answers))


def _answers(node: Node) -> Iterator[str]:
    """The first name of every answer."""
    if isinstance(node.value, str):
        if not node.is_blank():
            yield node.text()
        return
    entries = node.items()
    if any(isinstance(entry.value, list) for entry in entries):
        for entry in entries:
            yield from _answers(entry)
    else:
        yield from [entry.text() for entry in entries if not entry.is_blank()][:1]
