"""The schema of `merged_counterfact.json`, the paper's benchmark; the bundled world's records use it too.

A record is an object of blocks. `requested_rewrite` is the edit, and its prompt contains the subject. Every other block
holds test prompts: `rewrite`, `p-paraphrase`, `p-subject_alias` and `p-reasoning` have targets that must *rise*,
`l-neighbor` and `l-relation` targets that must *stay*, `o-commonsense` a right and a wrong continuation, and
`generation` no targets. Any block may be missing or empty. We add two optional fields: a block's `groups`, with a name
or null per prompt, and the record's `split`.
"""

from collections.abc import Iterator

from driftlens.data.fact import Fact
from driftlens.data.reading import Node
from driftlens.data.record import Record, TaskPrompt
from driftlens.data.tasks import Asked, all_tasks
from driftlens.errors import DriftlensError

__all__ = ["parse_merged"]

_BLOCKS = {
    "rewrite": "rewrite",
    "paraphrase": "p-paraphrase",
    "alias": "p-subject_alias",
    "reasoning": "p-reasoning",
    "neighborhood": "l-neighbor",
    "relation": "l-relation",
}


def parse_merged(node: Node) -> Record:
    """Parse one entry of the file's list into a record."""
    request = node.need("requested_rewrite")
    fact = _fact(request)
    asked = {task: list(_asked(node, block)) for task, block in _BLOCKS.items()}
    return Record(
        index=node.record,
        fact=fact,
        tasks=all_tasks(fact, asked, list(_other_task(node))),
        generation=tuple(_generation(node)),
        split=node.optional_text("split"),
        relation_id=request.optional_text("relation_id"),
        target_new_id=request.optional_text("target_new_id"),
    )


def _fact(request: Node) -> Fact:
    subject, prompt = request.need("subject").text(), request.need("prompt")
    true, new = request.need("target_true").text(), request.need("target_new")
    # Either of two fields can contradict the others; name it in the file's own terms.
    if new.text().strip() == true.strip():
        new.fail(f"{new.text()!r} equals target_true; a record must change its target")
    try:
        return Fact.from_text(prompt.text(), subject=subject, target_true=true, target_new=new.text())
    except DriftlensError as error:
        prompt.fail(str(error))


def _asked(record: Node, name: str) -> Iterator[Asked]:
    """Read a block with parallel lists of prompts, targets and, optionally, groups."""
    block = record.get(name)
    if block is None:
        return
    if block.get("groups") is None:
        for prompt, target in _columns(block, "prompts", "targets"):
            yield Asked(prompt.text(), target.text())
    else:
        for prompt, target, group in _columns(block, "prompts", "targets", "groups"):
            yield Asked(prompt.text(), target.text(), None if group.value is None else group.text())


def _other_task(record: Node) -> Iterator[TaskPrompt]:
    block = record.get("o-commonsense")
    if block is None:
        return
    for prompt, right, wrong in _columns(block, "prompts", "right", "wrong"):
        yield TaskPrompt(text=prompt.text(), target_true=right.text(), target_new=wrong.text())


def _columns(block: Node, first: str, *others: str) -> Iterator[tuple[Node, ...]]:
    """Zip parallel lists; a plain text, as in `o-commonsense`, counts as a list of one."""
    columns = {field: block.need(field).one_or_many() for field in (first, *others)}
    length = len(columns[first])
    for field in others:
        if (found := len(columns[field])) != length:
            block.need(field).fail(f"has {found} entries for {length} {first}; give one for each")
    return zip(*columns.values(), strict=True)


def _generation(record: Node) -> Iterator[str]:
    block = record.get("generation")
    if block is not None:
        yield from (prompt.text() for prompt in block.need("prompts").items())
