"""How ``DRIFTLENS_CHECK_SHAPES=1`` checks calls: beartype, as jaxtyping's import hook applies it to every function."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is as good as a float


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its calls checked.

    Not checked are hints with names that are imported for type checkers alone, and with ``Self``, whose class beartype
    is not told here.
    """
    hints = function.__annotations__
    hints.update({name: Any for name, hint in hints.items() if isinstance(hint, str) or "typing.Self" in repr(hint)})
    return _checked(function)
