"""The annotators' page: one HTML file with texts, style and script, which loads nothing from elsewhere.

On its own, the page stores answers in the browser and exports them as a file.  With ``server``, it also sends each
answer to its server (:mod:`driftlens.human.server`).  Its content security policy allows only this script and this
style, by their hashes, so that nothing in a model's text can run.
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
"""Seconds per pair; the paper reckons with 30 to 60."""


def comparison_page(comparison: Comparison, *, server: Mapping[str, Any] | None = None) -> bytes:
    """Make the page of a study.

    Args:
        comparison: the study; the page contains nothing of its key.
        server: a server's data about the annotator: ``annotator``, ``answers`` by item, and ``comment``.
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
    """The content security policy; ``connects`` allows the page to contact its own server."""
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
