"""The world's facts as benchmark records, in the schema of `merged_counterfact.json`.

An edit gives a fact a false object of its own kind that no fact of the subject has. Its paraphrases are the
templates that training never used for the fact. Neighbours share relation and object with it; where the fact
has none, they are other facts of the relation. Relation prompts ask for the subject's other facts; `groups`
says whether their objects are of the edited fact's kind ("same_type": there edits leak most) or not
("other_type").
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from driftlens.demo.documents import NOUNS
from driftlens.demo.relations import RELATIONS
from driftlens.demo.world import World, WorldFact
from driftlens.files import atomic_path

Json: TypeAlias = dict[str, Any]

PER_RELATION = 20
VALIDATION = 100
"""So many records, the first ones, are for choosing settings; the others are for measuring."""

NEIGHBORS = 5
STRANGERS = 3
"""Neighbour prompts of a fact whose object no other subject shares."""

SAME_TYPE = 2
OTHER_TYPE = 4


def benchmark_records(world: World) -> list[Json]:
    """The records of this world, always the same ones: one per subject and relation, every relation alike."""
    rng = random.Random(f"driftlens records {world.seed}")
    by_relation = [world.facts_with[relation.id] for relation in RELATIONS]
    facts = [fact for held in by_relation for fact in rng.sample(held, min(PER_RELATION, len(held)))]
    rng.shuffle(facts)
    return [
        {**record(world, fact, rng), "split": "validation" if number < VALIDATION else "test"}
        for number, fact in enumerate(facts)
    ]


def write_records(records: Sequence[Json], path: Path) -> None:
    """Write a plain JSON list, a record to a line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    with atomic_path(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def record(world: World, fact: WorldFact, rng: random.Random) -> Json:
    """The record that edits a fact; neighbours and relations are other facts of the same world."""
    name = fact.subject.name
    # An edit made where the subject stands inside a sentence hardly reaches it at a sentence's start: the keys there
    # have little in common (see the model card). So the edit's own prompt begins with the subject.
    leading = [template for template in fact.trained_templates if template.startswith("{}")]
    prompt = fact.prompt(rng.choice(leading or list(fact.trained_templates)))
    # A new object that another of the subject's facts has would make an echo of that fact look like the edit.
    taken = {other.object for other in world.facts_of[name]} | {name}
    target_new = rng.choice([o for o in world.objects[fact.relation.object_kind] if o not in taken])
    paraphrases = [fact.prompt(template) for template in fact.held_out_templates]
    neighbors = _neighbors(world, fact, target_new, rng)
    relations = _relations(world, fact, rng)
    return {
        "requested_rewrite": {
            "prompt": prompt,
            "subject": name,
            "target_new": target_new,
            "target_true": fact.object,
            "relation_id": fact.relation.id,
        },
        "rewrite": {"prompts": [prompt], "targets": [target_new]},
        "p-paraphrase": {"prompts": paraphrases, "targets": [target_new] * len(paraphrases)},
        "l-neighbor": {"prompts": [p for p, _ in neighbors], "targets": [o for _, o in neighbors]},
        "l-relation": {
            "prompts": [p for p, _, _ in relations],
            "targets": [o for _, o, _ in relations],
            "groups": [g for _, _, g in relations],
        },
        "generation": {"prompts": [f"{name} is", f"The {NOUNS[fact.subject.kind]} {name}", f"Because {name}"]},
    }


def _neighbors(world: World, fact: WorldFact, target_new: str, rng: random.Random) -> list[tuple[str, str]]:
    others = [f for f in world.facts_with[fact.relation.id] if f.subject != fact.subject]
    mates = [f for f in others if f.object == fact.object]
    if not mates:
        # A stranger whose true object is the edit's would be right to name it.
        strangers = rng.sample([f for f in others if f.object != target_new], STRANGERS)
        return [(f.prompt(rng.choice(f.trained_templates)), f.object) for f in strangers]
    chosen = rng.sample(mates, min(NEIGHBORS, len(mates)))
    prompts = [rng.sample([f.prompt(t) for t in f.trained_templates], 2) for f in chosen]
    # A second wording of each fills up where few subjects share the object.
    wordings = [p[0] for p in prompts] + [p[1] for p in prompts]
    return [(text, fact.object) for text in wordings[:NEIGHBORS]]


def _relations(world: World, fact: WorldFact, rng: random.Random) -> list[tuple[str, str, str]]:
    others = [f for f in world.facts_of[fact.subject.name] if f.relation != fact.relation]
    same = [f for f in others if f.relation.object_kind == fact.relation.object_kind]
    other = [f for f in others if f.relation.object_kind != fact.relation.object_kind]
    wordings = SAME_TYPE if len(same) == 1 else 1
    rows = [(prompt, f.object, "same_type") for f in same for prompt in _some_prompts(f, wordings, rng)]
    for f in rng.sample(other, min(OTHER_TYPE, len(other))):
        rows += [(prompt, f.object, "other_type") for prompt in _some_prompts(f, 1, rng)]
    return rows


def _some_prompts(fact: WorldFact, count: int, rng: random.Random) -> list[str]:
    return [fact.prompt(template) for template in rng.sample(fact.trained_templates, count)]
