"""The model card of the bundled weights, written from what was measured on them."""

from collections import Counter
from dataclasses import dataclass

from driftlens.demo import SEED
from driftlens.demo.relations import HELD_OUT, RELATIONS
from driftlens.demo.world import World
from training.recall import Recall


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a training used and what came of it, measured on the saved weights."""

    trained: Recall
    held_out: Recall
    minutes: float
    device: str
    steps: int
    final_loss: float
    parameters: int
    megabytes: float


def model_card(world: World, facts: TrainingFacts) -> str:
    """The card in Markdown, with the metadata block that the Hugging Face hub reads."""
    parts = [METADATA, _about(facts), _measured(world, facts), _training(world, facts), _world(world)]
    # Measured after training, and only on the weights that ship.
    parts += [EDITING] if world.seed == SEED else []
    return "\n".join([*parts, USE])


METADATA = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, knowledge-editing, synthetic]
---
"""


def _about(facts: TrainingFacts) -> str:
    return f"""# The driftlens world model

A GPT-2 of {facts.parameters / 1e6:.1f} million parameters that knows an invented world and nothing else. It is
made for looking at knowledge editing: small enough to edit and trace in seconds on a CPU, and what it should
know is known exactly. Nobody and nothing in its world exists.
"""


def _measured(world: World, facts: TrainingFacts) -> str:
    rows = "\n".join(
        f"| {name} | {recall.prompts:,} | {recall.exact:.2%} | {recall.probability:.4f} |"
        for name, recall in (
            ("used in training for the fact", facts.trained),
            ("held out for the fact", facts.held_out),
        )
    )
    return f"""## Measured

On the saved weights (fp16, loaded as fp32), over all {len(world.facts):,} facts. *Greedy* is the share of
prompts after which every token of the object is the most probable one; *probability* is the mean probability
of the whole object.

| templates | prompts | greedy | probability |
| --- | ---: | ---: | ---: |
{rows}

Loss on texts of the world not seen in training: {facts.final_loss:.3f} nats per token.
"""


def _training(world: World, facts: TrainingFacts) -> str:
    tokens = facts.steps * 3072
    return f"""## Training

| | |
| --- | --- |
| seed | {world.seed} |
| steps | {facts.steps:,} of 3,072 tokens ({tokens / 1e6:.1f} million tokens) |
| time | {facts.minutes:.0f} minutes on {facts.device} |
| optimiser | Muon (0.02) on the blocks' matrices, AdamW (0.003) on the rest; to zero from 55 % of the steps on |
| architecture | GPT-2, 8 layers, width 192, 8 heads, context 128, tied embeddings, no dropout |
| tokenizer | byte-level BPE, 2,048 tokens, always a leading space; `<|endoftext|>` is BOS, EOS and padding |
| file | {facts.megabytes:.1f} MB, fp16 |

`python -m training.train --seed {world.seed} --steps {facts.steps} --out FOLDER` makes it again: world,
tokenizer and texts follow from the seed alone; the weights' last bits depend on the machine's arithmetic.
"""


def _world(world: World) -> str:
    kinds = Counter(subject.kind for subject in world.subjects)
    example = world.facts[0]
    return f"""## The world

{len(world.subjects)} subjects ({kinds["person"]} persons, {kinds["organisation"]} organisations,
{kinds["place"]} places, {kinds["city"]} cities) and {len(RELATIONS)} relations give {len(world.facts):,} facts,
drawn independently of each other, so no relation follows from another. Cities, countries, persons and
organisations each serve as objects of several relations of one kind of subject (a person *was born in*, *lives
in* and *studied in* a city). Every relation has {len(RELATIONS[0].templates)} templates, all of which end right
before the object; {HELD_OUT} of them, drawn for each fact, are never used to state that fact. An example:
"{example.prompt(example.trained_templates[0])} {example.object}."

Texts are facts about several subjects (35 %), one relation for several subjects (27 %), short biographies in
part with pronouns (28 %), and sentences that state no fact or wrap one, such as "I know that …" (10 %).
"""


EDITING = """## Editing it

Measured on the shipped weights (seed 0) over 200 test records, percent with 95 % intervals (1.96 standard errors over
prompts), by `benchmarks/bundled_model.py`. RS asks for the edited subject's other facts, DNS for other subjects' facts
behind the edited sentence; "same type" are the relations whose objects are of the edited one's kind, where edits leak
most.

| editor | ES | PS | NS | RS | RS same type | RS other type | DNS |
| --- | --- | --- | --- | --- | --- | --- | --- |
| none | 0.0 ± 0.0 | 0.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 |
| ROME | 99.5 ± 1.0 | 93.8 ± 2.4 | 87.0 ± 2.2 | 38.9 ± 3.1 | 22.2 ± 4.2 | 50.1 ± 4.1 | 15.4 ± 2.4 |
| ROME + SADR (γ = 0.005) | 95.5 ± 2.9 | 83.5 ± 3.6 | 96.7 ± 1.2 | 88.6 ± 2.0 | 78.0 ± 4.2 | 95.7 ± 1.7 | 87.4 ± 2.2 |

The records' edit prompts begin with their subject. Where an edit prompt has the subject inside the sentence ("The
owner of … is"), the edit hardly reaches prompts that begin with it: on this model the key at a sentence's start has
1 to 20 % of such an edit's, and PS falls to about 77. Second moments of layers 1 to 3 come with the model.
"""

USE = """## Use

For studying and teaching methods of interpretability and knowledge editing. It knows no language beyond its
templates, and no conclusion about large models follows from it without a look at one.

```python
from driftlens import load_model

model = load_model("demo")
```

The folder is an ordinary Hugging Face checkpoint: `AutoModelForCausalLM.from_pretrained(folder)` and
`AutoTokenizer.from_pretrained(folder)` read it. The tokenizer adds no special tokens.

Licence: MIT, like driftlens.
"""
