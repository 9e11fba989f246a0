"""The page that annotators see: one HTML file with its texts, style and script, which loads nothing from elsewhere.

By itself it keeps answers in the browser and hands them over as a file; with ``server`` it also sends each answer to
where it came from (:mod:`driftlens.human.server`).  Its content security policy allows this one script and this one
style by their hashes, so that nothing in a model's text can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

    from driftlens.human.comparison import Comparison

__all__ = ["comparison_page", "environment", "policy"]

_SECONDS = 45
"""The paper counts on 30 to 60 a pair."""


def comparison_page(comparison: Comparison, *, server: Mapping[str, Any] | None = None) -> bytes:
    """The page of a study.

    Args:
        comparison: the study; nothing of its key goes into the page.
        server: what a server knows of the annotator: ``annotator``, ``answers`` by item, and ``comment``.
    """
    from markupsafe import Markup

    data = comparison.blinded()
    if server is not None:
        data["server"] = dict(server)
    template = environment().get_template("page.html")
    # Style and script are files of this package; of the data no character can end the element that it stands in.
    page = template.render(
        title=comparison.title,
        n_items=len(comparison.items),
        minutes=math.ceil(len(comparison.items) * _SECONDS / 60),
        policy=policy(connects=server is not None),
        style=Markup(_source("page.css")),
        script=Markup(_source("page.js")),
        data=Markup(_json_in_html(data)),
    )
    return page.encode()


@cache
def environment() -> Environment:
    """The pages of this package as Jinja templates that escape whatever is put into them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("driftlens.human", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


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
def _source(name: str) -> str:
    return files("driftlens.human").joinpath(name).read_text("utf-8")


@cache
def _digest(name: str) -> str:
    return base64.b64encode(hashlib.sha256(_source(name).encode()).digest()).decode()


def _json_in_html(data: object) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
