"""The `driftlens` command: `driftlens trace …` is `python -m driftlens.trace …`.

A command is a module with `main(argv) -> int`. It is imported only when it is called, so that `driftlens --version` and
a mistyped command answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from driftlens.errors import unknown_name
from driftlens.options.parsing import Parser
from driftlens.options.program import run_command
from driftlens.version import __version__

__all__ = ["main", "script"]

# Command -> one line of help. The command `trace` is the module `driftlens.commands.trace`.
_COMMANDS = {
    "agree": "read annotators' answers: who wins how often, and how far annotators agree",
    "compare": "let people compare what two edited models write: one page, or a small server",
    "edit": "edit a fact, see what else the edit changes, and be told whether to use the edited model",
    "evaluate": "edit and evaluate all records of a dataset, in a run that resumes after any interruption",
    "fetch": "bring a real model to this machine, for later use without a network",
    "profile": "measure where time and memory go on this machine, and estimate a full run",
    "trace": "edit a fact and trace which activations of the edited model contaminate the unedited one",
    "train-mend": "train the hypernetwork that the editor MEND edits with",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Pass the arguments after the command's name to that command; without a command, list all commands."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    # Only the arguments before the command are parsed here; every command has its own options and help.
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)
    name, *rest = arguments
    if name not in _COMMANDS:
        raise unknown_name("command", name, _COMMANDS)
    command: Callable[[Sequence[str]], int] = import_module(f"driftlens.commands.{name.replace('-', '_')}").main
    return command(rest)


def script() -> int:
    """The console script `driftlens`."""
    return run_command(main)


def _parser() -> Parser:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {line}" for name, line in _COMMANDS.items())
    parser = Parser(
        prog="driftlens",
        usage="driftlens [-h] [--version] COMMAND ...",
        description="Edit facts into language models and see where the edited model goes wrong.",
        epilog=f"commands:\n{commands}\n\n'driftlens COMMAND --help' lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"driftlens {__version__}")
    return parser
