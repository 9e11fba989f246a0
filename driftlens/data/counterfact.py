"""The schema of `merged_counterfact.json`, the paper's benchmark, which the bundled world's records share.

A record is an object of blocks. `requested_rewrite` is the edit, its prompt with the subject written out.
Every other block holds test prompts: `rewrite`, `p-paraphrase`, `p-subject_alias` and `p-reasoning` with
targets that must *rise*, `l-neighbor` and `l-relation` with targets that must *stay*, `o-commonsense` with a
right and a wrong continuation, and `generation` with prompts only. Any block may be missing or empty. Two
additions are ours and optional: a block's `groups`, a name or null per prompt, and the record's `split`.

Which target is right and which is wrong (the convention behind the paper's scores):

| tasks | target_new | target_true |
| --- | --- | --- |
| rewrite, paraphrase, alias, reasoning | the block's | the edit's |
| neighborhood, relation | the edit's | the block's |
| other_task | the block's `wrong` | the block's `right` |

The three distract tasks repeat neighborhood, relation and other_task behind the sentence
"{rewrite prompt} {target_new}. ".
"""

from collections.abc import Iterator
from dataclasses import replace

from driftlens.data.fact import Fact
from driftlens.data.reading import Node
from driftlens.data.record import TASKS, Record, TaskPrompt
from driftlens.errors import DriftlensError

__all__ = ["parse_record"]

_RISING = {
    "rewrite": "rewrite",
    "paraphrase": "p-paraphrase",
    "alias": "p-subject_alias",
    "reasoning": "p-reasoning",
}
_STAYING = {"neighborhood": "l-neighbor", "relation": "l-relation"}
_DISTRACTED = {
    "distract_neighborhood": "neighborhood",
    "distract_relation": "relation",
    "distract_other_task": "other_task",
}


def parse_record(node: Node) -> Record:
    """The record that `node`, one entry of the file's list, describes."""
    fact = _fact(node.need("requested_rewrite"))
    tasks: dict[str, tuple[TaskPrompt, ...]] = {}
    for task, block in _RISING.items():
        tasks[task] = tuple(
            TaskPrompt(text=text, target_true=fact.target_true, target_new=target, group=group)
            for text, target, group in _prompts(node, block)
        )
    for task, block in _STAYING.items():
        tasks[task] = tuple(
            TaskPrompt(text=text, target_true=target, target_new=fact.target_new, group=group)
            for text, target, group in _prompts(node, block)
        )
    tasks["other_task"] = tuple(_other_task(node))
    for task, plain in _DISTRACTED.items():
        tasks[task] = tuple(_distracted(prompt, fact) for prompt in tasks[plain])

    request = node.need("requested_rewrite")
    return Record(
        index=node.record,
        fact=fact,
        tasks={task: tasks[task] for task in TASKS},
        generation=tuple(_generation(node)),
        split=_optional(node, "split"),
        relation_id=_optional(request, "relation_id"),
        target_new_id=_optional(request, "target_new_id"),
    )


def _optional(node: Node, field: str) -> str | None:
    inner = node.get(field)
    return None if inner is None else inner.text()


def _fact(request: Node) -> Fact:
    subject, prompt = request.need("subject").text(), request.need("prompt")
    true, new = request.need("target_true").text(), request.need("target_new")
    # Two fields can be at odds with the others; say which one, in the file's own terms.
    if new.text().strip() == true.strip():
        new.fail(f"{new.text()!r} equals target_true; a record must change its target")
    try:
        return Fact.from_text(prompt.text(), subject=subject, target_true=true, target_new=new.text())
    except DriftlensError as error:
        prompt.fail(str(error))


def _prompts(record: Node, name: str) -> Iterator[tuple[str, str, str | None]]:
    """(prompt, target, group) of a block whose targets stand beside its prompts."""
    block = record.get(name)
    if block is None:
        return
    if block.get("groups") is None:
        for prompt, target in _columns(block, "prompts", "targets"):
            yield prompt.text(), target.text(), None
    else:
        for prompt, target, group in _columns(block, "prompts", "targets", "groups"):
            yield prompt.text(), target.text(), None if group.value is None else group.text()


def _other_task(record: Node) -> Iterator[TaskPrompt]:
    block = record.get("o-commonsense")
    if block is None:
        return
    for prompt, right, wrong in _columns(block, "prompts", "right", "wrong"):
        yield TaskPrompt(text=prompt.text(), target_true=right.text(), target_new=wrong.text())


def _columns(block: Node, first: str, *others: str) -> Iterator[tuple[Node, ...]]:
    """The entries of parallel lists, together; a plain text, as in `o-commonsense`, is a list of one."""
    columns = {field: _one_or_many(block.need(field)) for field in (first, *others)}
    length = len(columns[first])
    for field in others:
        if (found := len(columns[field])) != length:
            block.need(field).fail(f"has {found} entries for {length} {first}; give one for each")
    return zip(*columns.values(), strict=True)


def _one_or_many(node: Node) -> list[Node]:
    return [node] if isinstance(node.value, str) else node.items()


def _generation(record: Node) -> Iterator[str]:
    block = record.get("generation")
    if block is not None:
        yield from (prompt.text() for prompt in block.need("prompts").items())


def _distracted(prompt: TaskPrompt, fact: Fact) -> TaskPrompt:
    distractor = f"{fact.text} {fact.target_new}. "
    return replace(prompt, text=distractor + prompt.text, distractor=distractor)
