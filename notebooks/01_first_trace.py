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
# Edit one fact in a small model, see what else breaks, and find where in the model the damage passes through.
#
# Everything here runs offline on the bundled model, in seconds and without a GPU. Its world is invented: nobody and
# nothing in it exists, so everything it should know is known exactly. **On GPT-J and CUDA** change two lines and
# nothing else: `load_model("EleutherAI/gpt-j-6b", device="cuda", dtype="bfloat16")` and
# `load_records("merged_counterfact")`; the edit then takes a second moment over Wikipedia once, which is kept on
# disk.

# %%
import numpy as np

from driftlens import ROME, contaminating_substitution, evaluate, load_model, load_records

model = load_model("demo")
model

# %% [markdown]
# ## The fact
#
# A record is an edit request and the prompts that test it. *Rewrite* is the edit's own prompt. *Neighborhood* asks
# the same of other subjects, *relation* asks something else of the same subject: neither should change. *Distract
# neighborhood* asks the neighbour behind the edited sentence, which is where edited models fail most.

# %%
record = load_records("demo")[0]
record

# %% [markdown]
# ## The edit
#
# ROME optimises a value that makes the model answer `o_edit`, and writes it into one MLP's down-projection with a
# change of rank one. Watch the probability of the new answer rise while the loss falls. The model itself stays as it
# is: an edit is data, a few kilobytes, and acts only where you hand it over.

# %%
result = ROME.for_model(model).edit(model, record.fact)
result

# %% [markdown]
# ## What else changed
#
# A line per prompt: the probabilities of its two answers in the edited model. In the first line the new answer should
# have won, and did. In the others `p_true` was near 1 before the edit and should still be; see how far it fell where
# the question stands behind the edited sentence. (The probability of an answer is exp of the mean log-probability of
# its tokens, so two answers need not sum to one.)

# %%
tasks = ["rewrite", "neighborhood", "relation", "distract_neighborhood"]
nlls = evaluate(model, record, result.edit, tasks=tasks)
texts = [prompt.text for task in tasks for prompt in record.tasks[task]]
table = nlls[["task"]].assign(prompt=texts, p_true=np.exp(-nlls["nll_true"]), p_edit=np.exp(-nlls["nll_new"]))
table.groupby("task", sort=False).head(2).style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## Where it happens
#
# Contaminating substitution: record what each module puts out in the *edited* model, put it into the *unedited* one
# at a single token and in a window of two layers, and see what becomes of the answers. A red cell in the upper row
# makes the right answer less likely all by itself; a blue one in the lower row makes the edited answer likelier.
#
# Look at two places: the MLP output at the edited subject's last token, right where the edit was written, and the
# attention output at the prompt's last token some layers higher. The edit reaches the prediction because the last
# token *attends* to the edited subject, although nobody asked about it. `02_attention_drift` measures that, `03_sadr`
# restrains it. One prompt of one small model is an example, not evidence: `figures/` has averages with intervals.

# %%
prompt = record.tasks["distract_neighborhood"][0]
targets = (prompt.target_true, prompt.target_new)
contaminating_substitution(model, result.edit, prompt, targets, module=("resid", "mlp", "attn"), window=2)
