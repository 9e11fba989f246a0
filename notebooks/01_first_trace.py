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
# # A first trace
#
# Edit one fact in a small model, see what else breaks, and find where in the model the damage arises.
#
# This notebook runs offline on the bundled model, in seconds and without a GPU. The model's world is invented, so we
# know exactly what it should know. **On GPT-J and CUDA** change two lines: `load_model("EleutherAI/gpt-j-6b",
# device="cuda", dtype="bfloat16")` and `load_records("merged_counterfact")`. The edit then computes a second moment
# over Wikipedia once and caches it on disk.

# %%
import numpy as np

from driftlens import ROME, contaminating_substitution, evaluate, load_model, load_records

model = load_model("demo")
model

# %% [markdown]
# ## The fact
#
# A record is an edit request and the prompts that test it. *Rewrite* is the edit's own prompt. *Neighborhood* asks
# the same about other subjects, *relation* asks something else about the same subject: neither answer should change.
# *Distract neighborhood* puts the edited sentence before a neighborhood prompt; edited models fail there most.

# %%
record = load_records("demo")[0]
record

# %% [markdown]
# ## The edit
#
# ROME optimises a value that makes the model answer `o_edit`, and writes it into one MLP's down-projection as a
# rank-one change. Watch the probability of the new answer rise as the loss falls. The model itself does not change:
# an edit is data, a few kilobytes, and acts only where you pass it in.

# %%
result = ROME.for_model(model).edit(model, record.fact)
result

# %% [markdown]
# ## What else changed
#
# The table has a row per prompt, with the probabilities of its two answers in the edited model. In the first row the
# new answer should win, and it does. In the others `p_true` was near 1 before the edit and should still be. See how
# far it fell where the question follows the edited sentence. (The probability of an answer is exp of the mean
# log-probability of its tokens, so two answers need not sum to one.)

# %%
tasks = ["rewrite", "neighborhood", "relation", "distract_neighborhood"]
nlls = evaluate(model, record, result.edit, tasks=tasks)
texts = [prompt.text for task in tasks for prompt in record.tasks[task]]
table = nlls[["task"]].assign(prompt=texts, p_true=np.exp(-nlls["nll_true"]), p_edit=np.exp(-nlls["nll_new"]))
table.groupby("task", sort=False).head(2).style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## Where it happens
#
# Contaminating substitution records the output of each module in the *edited* model, puts it into the *unedited* one
# at a single token and in a window of two layers, and measures how the answers change. A red cell in the upper row
# makes the right answer less likely on its own; a blue one in the lower row makes the edited answer likelier.
#
# Two places matter: the MLP output at the edited subject's last token, where the edit was written, and the attention
# output at the prompt's last token some layers higher. The edit reaches the prediction because the last token
# *attends* to the edited subject, although the prompt does not ask about it. `02_attention_drift` measures that;
# `03_sadr` restrains it. One prompt of one small model is an example, not evidence: `figures/` has averages with
# intervals.

# %%
prompt = record.tasks["distract_neighborhood"][0]
targets = (prompt.target_true, prompt.target_new)
contaminating_substitution(model, result.edit, prompt, targets, module=("resid", "mlp", "attn"), window=2)
