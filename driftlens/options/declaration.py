"""Options of a command line, each written once, as a field of a dataclass.

    @dataclass(frozen=True, kw_only=True)
    class RunOptions:
        limit: int | None = option(None, "only the first N records", "N", whole_number(1))
        png: bool = flag("write no PNG", default=True)

1. :func:`option` declares a field that is an option with a value, :func:`flag` one without. The name is the field's:
   `limit` becomes `--limit N`, and `png`, which is True by default, becomes `--no-png`.
2. A subclass has the options of its bases; to change one, it declares the field anew.
3. :func:`read` builds the parser, parses the arguments, and makes the dataclass, which checks how options go together.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from typing_extensions import override

from driftlens.options.parsing import Parser

__all__ = ["REQUIRED", "Further", "flag", "flag_of", "option", "read"]

REQUIRED: Any = MISSING
"""The default of an option that must be given."""

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
    """A field of a dataclass that is an option of its command line.

    Args:
        default: the field's default, or :data:`REQUIRED`.
        help: the help text, in which `%(default)s` stands for the default; or a function that returns it, for texts
            that list what is registered.
        metavar: what stands for the value in the help.
        parse: makes the value of the text; it raises `argparse.ArgumentTypeError` for a text that it refuses.
        group: the title under which the help lists the option; None for the general list.
        flags: how the option is typed, if not as the field is called.
        action: what happens to the value, if it is not simply stored (:class:`Further`).
        nargs: how many values the option takes, as argparse writes it ("+", "?").
        const: the value for `nargs="?"` if the option stands without one.
        positional: whether it is an argument without a flag.
    """
    given = {"metavar": metavar, "type": parse, "action": action, "nargs": nargs, "const": const}
    settings = {name: value for name, value in given.items() if value is not None}
    declared = _Declared(help=help, group=group, flags=flags, positional=positional, settings=settings)
    return field(default=default, metadata={_KEY: declared})


def flag(help: str, *, default: bool = False, group: str | None = None, flags: tuple[str, ...] = ()) -> bool:  # noqa: A002
    """A field that is an option without a value, which turns its default around; otherwise as :func:`option`."""
    settings = {"action": "store_false" if default else "store_true"}
    declared = _Declared(help=help, group=group, flags=flags, positional=False, settings=settings)
    return field(default=default, metadata={_KEY: declared})


class Further(argparse.Action):
    """One more value of an option that may be repeated; the field is a tuple."""

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
    """The options of the dataclass `kind` in `argv` (None: the program's arguments).

    Args:
        kind: a dataclass with options.
        argv: the arguments.
        prog: the program's name in messages and in the help.
        description: what the help says first; its lines stay as they are.
        epilog: what the help says last, such as examples.
        groups: the titles of all groups of options, in the order of the help.

    Raises:
        DriftlensError: an unknown option, a value that is refused, or options that do not go together.
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
    """How the option of a field is typed, for messages."""
    return _flags(item)[0]


def _flags(item: Field[Any]) -> tuple[str, ...]:
    declared: _Declared = item.metadata[_KEY]
    if declared.positional:
        return (item.name,)
    return declared.flags or (f"--{'no-' if item.default is True else ''}{item.name.replace('_', '-')}",)
