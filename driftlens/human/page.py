"""The page that annotators see: one HTML file with its texts, style and script, which loads nothing from elsewhere.

By itself it keeps answers in the browser and hands them over as a file; with ``server`` it also sends each answer to
where it came from (:mod:`driftlens.human.server`).  Its content security policy allows this one script and this one
style by their hashes, so that nothing in a model's text can run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from driftlens.display.templates import render, source

if TYPE_CHECKING:
    from driftlens.human.comparison import Comparison

__all__ = ["comparison_page", "policy"]

_SECONDS = 45
"""The paper counts on 30 to 60 a pair."""


def comparison_page(comparison: Comparison, *, server: Mapping[str, Any] | None = None) -> bytes:
    """The page of a study.

    Args:
        comparison: the study; nothing of its key goes into the page.
        server: what a server knows of the annotator: ``annotator``, ``answers`` by item, and ``comment``.
    """
    data = comparison.blinded()
    if server is not None:
        data["server"] = dict(server)
    return render(
        "human/page.html",
        title=comparison.title,
        n_items=len(comparison.items),
        minutes=math.ceil(len(comparison.items) * _SECONDS / 60),
        policy=policy(connects=server is not None),
        data=data,
    ).encode()


def policy(*, connects: bool) -> str:
    """The content security policy; ``connects`` lets the page speak to the server it came from."""
    destination = "'self'" if connects else "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{_digest('page.js')}'",
            f"style-src 'sha256-{_digest('page.css')}'",
            "img-src data:",
            f"connect-src {destination}",
            "form-action 'none'",
            "base-uri 'none'",
        )
    )


@cache
def _digest(name: str) -> str:
    return base64.b64encode(hashlib.sha256(source(f"human/{name}").encode()).digest()).decode()
