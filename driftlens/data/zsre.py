"""The schema of `zsre_mend_eval.json`: questions of zsRE as MEND edits them, distributed with ROME.

`src` is the question, `answers` are the true answers, `alt` is the new answer, and `rephrase` is a paraphrase of the
question. `loc` is an unrelated question of Natural Questions, mostly without its question mark; its answer `loc_ans`
must stay.

The edit is `answers[0]` → `alt`, as in MEND and EasyEdit. ROME's loader instead edits in the true answer and compares
it with an end-of-text token.
"""

from driftlens.data.reading import Node
from driftlens.data.record import Record
from driftlens.data.tasks import Asked, all_tasks
from driftlens.data.uneditable import fact_of

__all__ = ["parse_zsre"]


def parse_zsre(node: Node) -> Record:
    """Parse one entry of the file's list into a record."""
    answers = node.need("answers")
    if not (true := answers.one_or_many()):
        answers.fail("is empty; expected at least one answer")
    fact = fact_of(
        node.need("src"),
        subject=node.need("subject").text(),
        target_true=true[0].text(),
        target_new=node.need("alt").text(),
    )
    asked = {"rewrite": [Asked(fact.text, fact.target_new)]}
    if (rephrase := node.get("rephrase")) is not None:
        asked["paraphrase"] = [Asked(rephrase.text(), fact.target_new)]
    if (elsewhere := node.get("loc")) is not None:
        question = elsewhere.text().rstrip()
        question = question if question.endswith("?") else f"{question}?"
        asked["neighborhood"] = [Asked(question, node.need("loc_ans").text())]
    return Record(index=node.record, fact=fact, tasks=all_tasks(fact, asked))
