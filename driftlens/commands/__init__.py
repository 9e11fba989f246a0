"""The commands: their options, terminal output and files.

The command `driftlens NAME` is `driftlens.NAME.main`, which calls `driftlens.commands.NAME`. Analyses do not depend on
command lines. torch is imported only after all options have been checked.
"""
