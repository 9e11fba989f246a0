"""The schema of ROME's `counterfact.json`: 21,919 edits (MEMIT's `multi_counterfact.json` has it too).

`requested_rewrite` is the edit. Its prompt is a template with `{}`; each target is an object with a text (`str`) and a
Wikidata name (`id`). Neighborhood prompts are about other subjects that share the old target. The `attribute_prompts`
are about subjects that have the new target; none of the paper's tasks uses them.
"""

from driftlens.data.reading import Node
from driftlens.data.record import Record
from driftlens.data.tasks import Asked, all_tasks
from driftlens.data.uneditable import fact_of

__all__ = ["parse_counterfact"]


def parse_counterfact(node: Node) -> Record:
    """Parse one entry of the file's list into a record."""
    request = node.need("requested_rewrite")
    true, new = request.need("target_true"), request.need("target_new")
    fact = fact_of(
        request.need("prompt"),
        subject=request.need("subject").text(),
        target_true=true.need("str").text(),
        target_new=new.need("str").text(),
        template=True,
    )
    asked = {
        "rewrite": [Asked(fact.text, fact.target_new)],
        "paraphrase": [Asked(text, fact.target_new) for text in _texts(node, "paraphrase_prompts")],
        "neighborhood": [Asked(text, fact.target_true) for text in _texts(node, "neighborhood_prompts")],
    }
    return Record(
        index=node.record,
        fact=fact,
        tasks=all_tasks(fact, asked),
        generation=tuple(_texts(node, "generation_prompts")),
        relation_id=request.optional_text("relation_id"),
        target_new_id=new.optional_text("id"),
    )


def _texts(record: Node, field: str) -> list[str]:
    block = record.get(field)
    return [] if block is None else [entry.text() for entry in block.items()]
