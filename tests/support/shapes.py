"""How ``DRIFTLENS_CHECK_SHAPES=1`` checks calls: beartype, as jaxtyping's import hook applies it to every function."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from beartype import beartype

_checked: Any = beartype

wrong_shapes = pytest.mark.skipif(
    os.environ.get("DRIFTLENS_CHECK_SHAPES", "0") != "0", reason="gives wrong shapes on purpose"
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the shapes of its tensors checked; tests may stand in for what has none."""
    hints = function.__annotations__
    hints.update({name: Any for name, hint in hints.items() if "jaxtyping." not in repr(hint)})
    return _checked(function)
