"""Options of a command line, each written once, as a field of a dataclass.

    @dataclass(frozen=True, kw_only=True)
    class RunOptions:
        limit: int | None = option(None, "only the first N records", "N", whole_number(1))
        png: bool = flag("write no PNG", default=True)

1. :func:`option` declares a field that is an option with a value, :func:`flag` an option without one. The field's name
   gives the option's: `limit` becomes `--limit N`, and `png`, which is True by default, becomes `--no-png`.
2. A subclass inherits the options of its bases; to change one, it declares the field again.
3. :func:`read` builds the parser, parses the arguments, and makes the dataclass, which checks combinations of options.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from typing_extensions import override

from driftlens.options.parsing import Parser

__all__ = ["REQUIRED", "Further", "flag", "flag_of", "option", "read"]

REQUIRED: Any = MISSING
"""The default of a required option."""

_KEY = "option"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Declared:
    help: str | Callable[[], str]
    group: str | None
    flags: tuple[str, ...]
    positional: bool
    settings: dict[str, Any]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


OptionsT = TypeVar("OptionsT", bound=_Dataclass)


def option(
    default: T,
    help: str | Callable[[], str],  # noqa: A002 argparse's word
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    *,
    group: str | None = None,
    flags: tuple[str, ...] = (),
    action: type[argparse.Action] | None = None,
    nargs: str | None = None,
    const: Any = None,
    positional: bool = False,
) -> T:
    """Declare a dataclass field that is an option of a command line.

    Args:
        default: the field's default, or :data:`REQUIRED`.
        help: the help text, with `%(default)s` for the default; or a function that returns it, for texts that list
            registered names.
        metavar: the placeholder of the value in the help.
        parse: converts the text; it raises `argparse.ArgumentTypeError` for an invalid text.
        group: the title under which the help lists the option; None for the general list.
        flags: the option's flags, if they differ from the field's name.
        action: the argparse action, if the value is not simply stored (:class:`Further`).
        nargs: the number of values, in argparse's notation ("+", "?").
        const: with `nargs="?"`, the value of an option without one.
        positional: whether it is a positional argument.
    """
    given = {"metavar": metavar, "type": parse, "action": action, "nargs": nargs, "const": const}
    settings = {name: value for name, value in given.items() if value is not None}
    declared = _Declared(help=help, group=group, flags=flags, positional=positional, settings=settings)
    return field(default=default, metadata={_KEY: declared})


def flag(help: str, *, default: bool = False, group: str | None = None, flags: tuple[str, ...] = ()) -> bool:  # noqa: A002
    """Declare an option without a value, which negates its default; otherwise as :func:`option`."""
    settings = {"action": "store_false" if default else "store_true"}
    declared = _Declared(help=help, group=group, flags=flags, positional=False, settings=settings)
    return field(default=default, metadata={_KEY: declared})


class Further(argparse.Action):
    """Append a value of a repeatable option; the field is a tuple."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def read(
    kind: type[OptionsT],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    epilog: str | None = None,
    groups: Sequence[str] = (),
) -> OptionsT:
    """Parse `argv` (None: the program's arguments) into the dataclass `kind`.

    Args:
        kind: a dataclass with options.
        argv: the arguments.
        prog: the program's name in messages and in the help.
        description: the beginning of the help; its line breaks are kept.
        epilog: the end of the help, such as examples.
        groups: the titles of all groups of options, in the order of the help.

    Raises:
        DriftlensError: an unknown option, an invalid value, or options that exclude each other.
    """
    parser = Parser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: dict[str | None, Callable[..., argparse.Action]] = {None: parser.add_argument}
    add |= {title: parser.add_argument_group(title).add_argument for title in groups}
    for item in fields(kind):
        if _KEY not in item.metadata:
            continue
        declared: _Declared = item.metadata[_KEY]
        settings = {**declared.settings, "help": declared.help if isinstance(declared.help, str) else declared.help()}
        if not declared.positional:
            settings |= {"dest": item.name}
            settings |= {"required": True} if item.default is MISSING else {"default": item.default}
        add[declared.group](*_flags(item), **settings)
    return kind(**vars(parser.parse_args(argv)))


def flag_of(item: Field[Any]) -> str:
    """The flag of a field's option, for messages."""
    return _flags(item)[0]


def _flags(item: Field[Any]) -> tuple[str, ...]:
    declared: _Declared = item.metadata[_KEY]
    if declared.positional:
        return (item.name,)
    return declared.flags or (f"--{'no-' if item.default is True else ''}{item.name.replace('_', '-')}",)
