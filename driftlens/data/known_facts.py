"""ROME's known facts, `known_1000.json`: 1,209 prompts that GPT-2 XL completes with the right attribute."""

import os
from dataclasses import dataclass
from itertools import islice

from driftlens.data.homes import fetch
from driftlens.data.joints import without_blanks
from driftlens.data.reading import Node, read_nodes
from driftlens.errors import DriftlensError
from driftlens.files import path_of

__all__ = ["KnownFact", "load_known_facts"]


@dataclass(frozen=True, kw_only=True)
class KnownFact:
    """A fact for causal tracing, with a true attribute and no new target.

    `text` is the whole prompt, which contains the subject. It may continue after the filled-in `template`, up to where
    GPT-2 XL predicts the attribute; `prediction` is what the model wrote after the template.
    """

    index: int
    subject: str
    text: str
    attribute: str
    template: str
    prediction: str
    relation_id: str | None = None


def load_known_facts(source: str | os.PathLike[str] = "known_facts", *, limit: int | None = None) -> list[KnownFact]:
    """Load the facts of the public file, downloaded at first use, or of a local file; at most `limit` if given.

    Raises:
        DriftlensError: the file violates its schema; the message names file, record and field.
    """
    if limit is not None and limit < 0:
        raise DriftlensError(f"limit {limit} is negative; give the number of facts wanted, or none for all")
    path = fetch("known_facts") if source == "known_facts" else path_of(source)
    return [_parse(node) for node in islice(read_nodes(path), limit)]


def _parse(node: Node) -> KnownFact:
    subject, prompt, template = node.need("subject").text(), node.need("prompt"), node.need("template")
    if subject not in prompt.text():
        prompt.fail(f"the subject {subject!r} does not occur in {prompt.text()!r}")
    if template.text().count("{}") != 1:
        template.fail(f"{template.text()!r} must hold '{{}}' once, where the subject goes")
    return KnownFact(
        index=node.record,
        subject=subject,
        text=without_blanks(prompt.text()),
        attribute=node.need("attribute").text().strip(),
        template=template.text(),
        prediction=node.need("prediction").text(),
        relation_id=node.optional_text("relation_id"),
    )
