"""Registries: names under which command lines, the clinic and runs find what this package or another one defines.

An entry is a class, or text that says where it is (``"package.module:Class"``), so that listing names imports
nothing.  Another package's entry points of the registry's group count as registered, which makes them known to every
process.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from driftlens.errors import DriftlensError, unknown_name

__all__ = ["EDITORS", "REGULARIZERS", "Registry", "register_editor", "register_regularizer"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and the classes that they stand for."""

    def __init__(self, what: str, group: str, homes: Mapping[str, str]) -> None:
        """`what` is what they are names of, `group` the group of entry points, `homes` where the built-in ones are."""
        self.what = what
        self.group = group
        self._homes: dict[str, str | type[T]] = dict(homes)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the built-in ones first."""
        offered = (entry.name for entry in entry_points(group=self.group))
        return tuple(dict.fromkeys([*self._homes, *offered]))

    def register(self, name: str, of: type[T]) -> type[T]:
        """Have `name` stand for this class from now on.

        Raises:
            DriftlensError: the name stands for another class, or is none that a command line could take.
        """
        if not name or name != name.lower() or not name.replace("-", "").replace("_", "").isalnum():
            raise DriftlensError(f"{name!r} cannot name {self.what}; expected lower-case letters, digits and hyphens")
        known = self._homes.setdefault(name, of)
        if known is not of and known != f"{of.__module__}:{of.__qualname__}":
            raise DriftlensError(f"the {self.what} {name!r} is registered already, as {known}; choose another name")
        return of

    def find(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            DriftlensError: nothing is registered under it.
        """
        home = self._homes.get(name)
        if home is None:
            offered = {entry.name: entry.value for entry in entry_points(group=self.group)}
            if name not in offered:
                raise unknown_name(self.what, name, self.names)
            home = offered[name]
        if not isinstance(home, str):
            return home
        module, _, attribute = home.partition(":")
        found: type[T] = getattr(import_module(module), attribute)
        return found

    def name_of(self, of: type[T]) -> str | None:
        """The name of a class, if it has one."""
        mine = f"{of.__module__}:{of.__qualname__}"
        return next((name for name, home in self._homes.items() if home is of or home == mine), None)


EDITORS: Registry[Any] = Registry(
    "editor",
    "driftlens.editors",
    {
        "rome": "driftlens.editors.rome:ROME",
        "memit": "driftlens.editors.memit:MEMIT",
        "pmet": "driftlens.editors.pmet:PMET",
        "alphaedit": "driftlens.editors.alphaedit:AlphaEdit",
        "wise": "driftlens.editors.wise:WISE",
        "mend": "driftlens.editors.mend:MEND",
    },
)
"""Editors by name; `register_editor` adds to them, and so do entry points in the group `driftlens.editors`."""

REGULARIZERS: Registry[Any] = Registry(
    "regularizer",
    "driftlens.regularizers",
    {"sadr": "driftlens.editors.sadr:SADR", "guarded-sadr": "driftlens.editors.guarded:GuardedSADR"},
)
"""Regularizers by name; `register_regularizer` and the group `driftlens.regularizers` add to them."""


def register_editor(name: str, editor: type[Any]) -> None:
    """Have the command line, the clinic, runs and experiments find `editor`, a subclass of `Editor`, by `name`.

    A package that wants its editor known to every process names it as an entry point in the group
    `driftlens.editors` instead.

    Raises:
        DriftlensError: the name is taken, or no name.
    """
    EDITORS.register(name, editor)


def register_regularizer(name: str, regularizer: type[Any]) -> None:
    """Have the command line find `regularizer`, a dataclass, by `name`.

    Raises:
        DriftlensError: the name is taken, or no name.
    """
    REGULARIZERS.register(name, regularizer)
