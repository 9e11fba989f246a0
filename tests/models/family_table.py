"""docs/families.md: what is proven of each family, measured on its tiny random checkpoint.

`make families` (or `python -m tests.models.family_table`) measures and writes the page.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from driftlens import contaminating_substitution
from driftlens.models import Batch, LensModel, load_model
from tests.analyses.test_trace import PROMPTS, TARGETS, one_by_one, random_edit
from tests.support.checkpoints import FAMILIES, MORE_FAMILIES, WINDOW, tiny_checkpoint
from tests.support.places import ROOT
from tests.support.plain import PlainModel

PAGE = ROOT / "docs" / "families.md"

INTRODUCTION = """# Model families

driftlens runs and edits decoders of these families, whatever a checkpoint is called. `make families` writes the table:
each row is measured on a tiny random checkpoint of the family, against plain Hugging Face.

- **sites**: hook points at which the load-time self-check has proven that what is written takes effect.
- **logits**: largest error, relative to the logits' norm, over rows from one token to the whole context, beyond every
  sliding window; in float32, and in bfloat16 against Hugging Face's own bfloat16.
- **edit**: largest difference of a log-probability between an edit that acts as hooks and the same edit in the weights.
- **trace**: largest difference of a probability between the grid of contaminating substitution and one full pass of
  Hugging Face for each cell.
- **export**: an exported model loads in Hugging Face with the same tensors, bit for bit.

"""

NOTES = f"""
Falcon, a mixture of experts, an encoder, a recurrent model and attention that is not a softmax over visible tokens are
not supported; such a checkpoint is refused in one line. A decoder of another family takes
[ten minutes](howto/family.md).

- Mistral, Phi-3, Qwen 2, Gemma, GPT-Neo and StarCoder 2 checkpoints may have **sliding windows**, in all layers or in
  some. A window counts a token's position in its own text. Here it is {WINDOW} tokens wide.
- **Gemma 2 and 3 and OLMo 2** put a norm between a sublayer and the residual stream. An edit changes what goes into
  that norm, and so do the value optimisations of ROME, MEMIT and PMET; MEMIT's value is about the down-projection's
  output there, since no weight can write a residual that a norm rescales.
- **longrope** (Phi-3 with long context) and **dynamic** rotary embeddings change all frequencies of a row once a batch
  passes their boundary. driftlens reads rows up to the boundary, where every row keeps its own numbers.
- **OPT** with norms after the sublayers (opt-350m) and **GPT-NeoX** without biases in the attention are refused.
- A **HookedTransformer** of transformer-lens 3.9 is taken for GPT-2, GPT-J, GPT-NeoX and Llama.

## A real Gemma 3

One fact, edited and traced by hand in Gemma 3 270M (18 layers, windows of 512 tokens in all but every sixth layer),
from a Q4_K_M file that was dequantised to float32. The settings are `ROME.for_model`'s (layer 4, lr 0.023, clamp 4,
20 steps), with three contexts and a second moment over 60 paragraphs of WikiText-2. *The Eiffel Tower is located in the
city of* moves from Paris to Rome.

![Contaminating substitution in Gemma 3 270M](../figures/gemma3-270m/trace.png)

The self-check finds logits within 2e-6 of Hugging Face's. P("Rome") on the edit prompt rises from 0.002 to 0.998 over
the contexts. On the picture's prompt the edited model gives "Rome" 0.541 (unedited 0.075) and "Paris" 0.262 (0.345).
"Rome" rises where edited MLP outputs stand at the end of "Arc de Triomphe" in layers 2 to 7, by up to 0.56, and where
edited attention outputs stand at the last token in layers 10 to 15.

| Eiffel Tower → Rome | ES | EM | PS | NS | NM | RS | RM | DNS | DNM |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| unedited | 0 | 0.1 | 0 | 100 | 55.8 | 100 | 48.4 | 100 | 66.0 |
| ROME | 100 | 99.8 | 100 | 66.7 | 43.1 | 100 | 17.7 | 66.7 | 64.2 |

Of the three Distract Neighborhood prompts the edit damages mainly this one: P("Rome") is 0.541, 0.142 and 0.004. Their
attention drift is 1.82 on average (the KL sum above layer 4). Vanilla attention weights, patched into windows of ten
layers, do **not** undo the damage: P("Rome") on the picture's prompt lies between 0.475 (around layer 8) and 0.926
(around layer 16). One fact and three prompts show that the tools work on this family. They are no test of the paper's
claims on it.

![Vanilla attention weights patched into the edited Gemma 3 270M](../figures/gemma3-270m/patch.png)
"""


def main() -> None:
    lines = [
        "| family | sites | logits, fp32 | logits, bf16 | edit | trace | export |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family in (*FAMILIES, *MORE_FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(family, Path(folder)))
    PAGE.write_text(INTRODUCTION + "\n".join(lines) + "\n" + NOTES, encoding="utf-8")


def row(family: str, root: Path) -> str:
    folder = tiny_checkpoint(family, root / "model")
    model, plain = load_model(folder, device="cpu"), PlainModel(folder)
    half = load_model(folder, device="cpu", dtype="bf16"), PlainModel(folder, dtype=torch.bfloat16)
    assert model.checked is not None
    errors = logits_error(model, plain), logits_error(*half)
    measured = [*errors, edit_error(model), trace_error(model, plain)]
    cells = [family, str(len(model.checked.sites)), *(f"{error:.0e}" if error else "0" for error in measured)]
    return f"| {' | '.join(cells)} | {'same' if reloads(model, folder, root) else 'differs'} |"


def logits_error(model: LensModel, plain: PlainModel) -> float:
    worst = 0.0
    for length in (1, WINDOW, WINDOW + 1, 3 * WINDOW, model.n_ctx):
        generator = torch.Generator().manual_seed(length)
        tokens = torch.randint(2, model.d_vocab, (2, min(length, model.n_ctx)), generator=generator)
        found = model.unembed(model.run(whole(tokens))).float()
        expected = plain.run(tokens)[1].float()
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    return worst


def edit_error(model: LensModel) -> float:
    edit = random_edit(model, 0, 1)
    batch = whole(torch.arange(2, 2 + min(2 * WINDOW, model.n_ctx))[None])
    hooked = model.unembed(model.run(batch, hooks=edit.hooks(model))).log_softmax(-1)
    with edit.applied(model):
        written = model.unembed(model.run(batch)).log_softmax(-1)
    return float((hooked - written).abs().max())


def trace_error(model: LensModel, plain: PlainModel) -> float:
    edit, (target, _) = random_edit(model, 0), TARGETS[0]
    prompt = PROMPTS[0] if len(model.encode(f"{PROMPTS[0]} {target}")) <= model.n_ctx else "Paris is"
    found: Any = contaminating_substitution(model, edit, prompt, target, ("resid", "mlp", "attn"), 2).table
    expected = [cell[3] for cell in one_by_one(plain, edit, prompt, target, 2)]
    return float(np.abs(found["probability"].to_numpy() - np.array(expected)).max())


def reloads(model: LensModel, folder: Path, root: Path) -> bool:
    model.export(root / "out")
    PlainModel(root / "out")
    before, after = (load_file(each / "model.safetensors") for each in (folder, root / "out"))
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def whole(tokens: torch.Tensor) -> Batch:
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


if __name__ == "__main__":
    main()
