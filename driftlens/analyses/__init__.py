"""Analyses of what an edit changes inside the model.

`substitution` puts activations of the edited model into the unedited one, `patch` restores attention of the unedited
model in the edited one, and `drift` measures how far attention moved. They share `cases` and `cells`.
"""
