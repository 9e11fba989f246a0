# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your model, your fact
#
# Edit a fact of your own, test it with prompts of your own, explore what the edit changed, and save it.
#
# **Another model** takes one line; any GPT-2, GPT-J, GPT-NeoX or Llama checkpoint works:
#
# - `load_model("gpt2-xl")`, `load_model("./a/local/checkpoint")`, `load_model("EleutherAI/gpt-j-6b", device="cuda",
#   dtype="bfloat16")`;
# - `LensModel(bridge)` around a TransformerLens model that is already in your notebook.
#
# If driftlens has no second moments for a model, the first edit computes them over a text corpus and caches them on
# disk. Name a corpus that resembles the model's training data: `ROME.for_model(model, corpus="wikitext")`, or your
# own text file.

# %% tags=["parameters"]
changes = {}  # settings of the editor other than the presets', e.g. {"layer": 5, "lr": 0.3}

# %%
import numpy as np
import pandas as pd

from driftlens import ROME, SADR, Edit, Fact, Record, TaskPrompt, evaluate, explore, generate, load_model
from driftlens.data import TASKS

model = load_model("demo")

# %% [markdown]
# ## The fact, and whether the model knows it
#
# The prompt is a template with `{}` for the subject and ends right before the answer. An edit overwrites knowledge,
# so first check that the model knows the fact. If `p_true` is near zero, the prompt does not elicit the fact, and an
# edit of it shows little about editing knowledge. Reword the prompt, or choose another fact.

# %%
fact = Fact(subject="Isle Skerock", prompt="{} is wanted by", target_true="Fropados", target_new="Vlordonia")


def ask(text, right, new=fact.target_new, group=None, behind=""):
    return TaskPrompt(text=behind + text, target_true=right, target_new=new, group=group, distractor=behind)


sentence = f"{fact.text} {fact.target_new}. "  # what edited models stumble over
record = Record(
    index=0,
    fact=fact,
    tasks={
        **dict.fromkeys(TASKS, ()),
        "rewrite": (ask(fact.text, fact.target_true),),
        "paraphrase": (ask("The claim to Isle Skerock comes from", fact.target_true),),
        "neighborhood": (ask("Fort Wolock is claimed by", "Fropados"),),
        "relation": (ask("Isle Skerock attracts tourists to", "Forberra"),),
        "distract_neighborhood": (ask("Fort Wolock is claimed by", "Fropados", behind=sentence),),
        "distract_relation": (ask("Isle Skerock attracts tourists to", "Forberra", behind=sentence),),
    },
)


def probabilities(edit=None):
    nlls = evaluate(model, record, edit)
    return pd.DataFrame({"p_true": np.exp(-nlls["nll_true"]), "p_edit": np.exp(-nlls["nll_new"])}).set_axis(
        nlls["task"]
    )


probabilities().style.format(precision=3)

# %% [markdown]
# ## Two edits
#
# We edit with and without SADR (`03_sadr` explains it). In *rewrite* and *paraphrase* `p_edit` should have risen;
# everywhere else `p_true` should be unchanged. This is only one fact: try several before you trust a setting.

# %%
plain = ROME.for_model(model, **changes).edit(model, fact)
gentle = ROME.for_model(model, regularizers=(SADR(gamma=0.005),), **changes).edit(model, fact)
together = {"unedited": None, "ROME": plain.edit, "ROME + SADR": gentle.edit}
pd.concat({name: probabilities(edit) for name, edit in together.items()}, axis=1).style.format(precision=3)

# %% [markdown]
# ## What it writes now
#
# All three models continue the same prompts greedily, side by side; different edits run as rows of one batch.

# %%
prompts = [fact.text, "Isle Skerock attracts tourists to", sentence + "Fort Wolock is claimed by"]
rows = [(text, edit) for text in prompts for edit in together.values()]
written = generate(model, [text for text, _ in rows], [edit for _, edit in rows], top_k=1, max_tokens=30)
texts = np.array([one.text for one in written]).reshape(len(prompts), len(together))
pd.DataFrame(texts, columns=list(together)).style.hide(axis="index").set_properties(**{"text-align": "left"})

# %% [markdown]
# ## Look around
#
# Choose a prompt, editor, module, window, answer and cell. The heatmap, the attention of every head and the next
# tokens update. Start with *attention output* and *hidden state* on a distract task, then switch the editor to SADR
# and see what remains. `explorer.save("explore.html")` writes the same as a page for readers without Python.

# %%
gammas = (None, 0.005)
explorer = explore(model, record, editor=ROME.for_model(model, **changes), gammas=gammas, windows=(2,))
explorer

# %% [markdown]
# ## Take it home
#
# An edit is a small file. `edit.applied(model)` writes it into the weights for the duration of the block, and
# `edit.export(model, "./edited")` makes a folder that plain `transformers` loads.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "skerock.safetensors"
    gentle.edit.save(path)
    print(f"{path.stat().st_size / 1024:.1f} KiB")
    again = Edit.load(path)
with again.applied(model):
    inside = generate(model, [fact.text], top_k=1, max_tokens=12)[0].text
outside = generate(model, [fact.text], top_k=1, max_tokens=12)[0].text
print("applied: ", inside)
print("restored:", outside)
