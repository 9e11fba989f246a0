"""Analyses: what an edit does inside the model.

`substitution` puts activations of the edited model into the unedited one, `patch` puts attention of the unedited model
back into the edited one, `drift` measures how far attention moved. `cases` and `cells` are what they share.
"""
