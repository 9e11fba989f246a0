"""The insides of the commands: options, what a command shows in the terminal, and what it writes.

A command `driftlens NAME` is `driftlens.NAME.main`, which hands over to `driftlens.commands.NAME`; so the analyses
themselves know nothing of command lines. Nothing here imports torch before every option has been looked at.
"""
