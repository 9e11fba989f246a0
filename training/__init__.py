"""Train the bundled model: `python -m training.train`.

A tool of the repository, not a part of the installed package.
"""
