"""Identify a setting by a text that is equal exactly if the settings are: for provenance, caches and runs.

`repr` is not enough. A tensor prints only a few of its numbers, an object may print nothing of its contents, and two
different regularisers can print the same name. Therefore:

1. Plain values are identified by their `repr`, containers by their contents.
2. Tensors and arrays are identified by shape, precision and a digest of all their bytes.
3. An object is identified by its class and attributes, whatever its own `repr` or `==` says. A class from outside
   driftlens, such as a regulariser in a notebook, is also identified by its code, since it may be redefined under the
   same name.
4. A function is identified by its name, code, defaults and closure.

Anything else cannot be identified and is not cached.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeAlias, cast, get_origin

import numpy as np
import torch

from driftlens.errors import DriftlensError
from driftlens.models.fingerprint import tensor_digest

__all__ = ["UnidentifiedError", "identity"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), PurePath, range, slice, torch.dtype, torch.device)
_KNOWN = ("driftlens", "builtins", "abc", "typing", "collections", "torch", "numpy")
"""Modules whose code is determined by a version, not by a session."""
_DIGITS = 16

Told: TypeAlias = Callable[[object], str]


class UnidentifiedError(DriftlensError):
    """An object has nothing that identifies it."""


def identity(value: object) -> str:
    """Return the text that identifies `value`; for plain settings it equals their `repr`.

    Raises:
        UnidentifiedError: `value`, or a part of it, cannot be identified.
    """
    return _told(value, ())


def _told(value: Any, above: tuple[int, ...]) -> str:
    if id(value) in above:
        raise UnidentifiedError(f"a {type(value).__name__} holds itself and cannot be identified")
    within = (*above, id(value))

    def told(part: object) -> str:
        return _told(part, within)

    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, _PLAIN) or get_origin(value) is not None:  # or a type such as dict[str, int]
        return repr(value)
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"tensor({list(value.shape)}, {dtype}, {tensor_digest(value)})"
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype == object:
            return f"array({list(value.shape)}, {told(value.tolist())})"
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:_DIGITS]
        return f"array({list(value.shape)}, {value.dtype}, {content})"
    if isinstance(value, type | functools.partial | types.MethodType | types.FunctionType | types.BuiltinFunctionType):
        return _callable(value, told)
    if type(value) is tuple:
        return f"({', '.join(map(told, value))}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return f"{{{', '.join(f'{told(key)}: {told(of)}' for key, of in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(told, value))}]"
    return _object(value, told)


def _callable(value: Any, told: Told) -> str:
    """Identify a class, a function, or a partial application."""
    if isinstance(value, type):
        return value.__qualname__ + _code_of(value, told)
    if isinstance(value, functools.partial):
        bound = cast("functools.partial[Any]", value)
        return f"partial({told(bound.func)}, {told(bound.args)}, {told(bound.keywords)})"
    if isinstance(value, types.MethodType):
        return f"{told(value.__self__)}.{value.__name__}"
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}({_function(value, told)})"
    owner = value.__self__  # of what is built in, a module or an object
    return f"{owner.__name__ if isinstance(owner, types.ModuleType) else told(owner)}.{value.__name__}"


def _object(value: Any, told: Told) -> str:
    """Identify an object by its class, its contents and its attributes."""
    attributes = _attributes(value)
    parts = [f"{name}={told(of)}" for name, of in attributes.items()]
    if isinstance(value, Mapping):
        parts.append(told(dict(cast("Mapping[Any, Any]", value))))
    elif isinstance(value, Set):
        parts.append(f"{{{', '.join(sorted(map(told, cast('Set[Any]', value))))}}}")
    elif isinstance(value, Sequence):
        parts.append(told(list(cast("Sequence[Any]", value))))
    elif not hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
        raise UnidentifiedError(
            f"a {type(value).__name__} cannot be identified; give numbers, texts, tensors, or objects that hold these"
        )
    return f"{type(value).__qualname__}{_code_of(type(value), told)}({', '.join(parts)})"


def _attributes(value: Any) -> dict[str, Any]:
    """All of an object's own attributes, except cached values computed from the others."""
    names: dict[str, None] = {}
    if is_dataclass(value):
        names |= dict.fromkeys(item.name for item in fields(value))
    for cls in type(value).__mro__:
        slots: Any = cls.__dict__.get("__slots__", ())
        names |= dict.fromkeys([slots] if isinstance(slots, str) else slots)
    names |= dict.fromkeys(getattr(value, "__dict__", ()))
    computed = {
        name
        for cls in type(value).__mro__
        for name, of in vars(cls).items()
        if isinstance(of, functools.cached_property)
    }
    return {
        name: getattr(value, name)
        for name in names
        if name not in computed and name not in ("__dict__", "__weakref__") and hasattr(value, name)
    }


def _code_of(cls: type, told: Told) -> str:
    """Digest the code of a class and its bases, except those of driftlens, Python and PyTorch."""
    found: list[str] = []
    for base in cls.__mro__:
        home = sys.modules.get(base.__module__)
        if base.__module__.split(".")[0] in _KNOWN and getattr(home, base.__name__, None) is base:
            continue
        for name, of in sorted(vars(base).items()):
            functions = [of.fget, of.fset] if isinstance(of, property) else [getattr(of, "__func__", of)]
            functions = [getattr(each, "func", each) for each in functions]  # of a cached property
            code = [_function(each, told) for each in functions if isinstance(each, types.FunctionType)]
            if code:
                found.append(f"{name} {code}")
            elif not name.startswith("_") and not hasattr(of, "__get__"):
                found.append(f"{name} {told(of)}")
    return f"[{_digest(' '.join(found))}]" if found else ""


def _function(function: types.FunctionType, told: Told) -> str:
    """Identify a function by its code, its defaults and its closure, except classes, such as its own."""
    closed = [cell.cell_contents for cell in function.__closure__ or ()]
    known = [function.__defaults__, function.__kwdefaults__, [each for each in closed if not isinstance(each, type)]]
    return f"{_digest(_code(function.__code__))} {told(known)}"


def _code(code: types.CodeType) -> str:
    """Identify code independently of its file and line."""
    constants = [
        _code(const) if isinstance(const, types.CodeType)
        # A set's order differs between processes.
        else str(sorted(map(repr, cast("frozenset[Any]", const)))) if isinstance(const, frozenset)
        else repr(const)
        for const in code.co_consts
    ]  # fmt: skip
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
