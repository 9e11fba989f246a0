"""The Jinja environment that all pages and cards share.

Templates are `.html` files beside the modules that fill them, named by their path in the package ("clinics/page.html").
Values are escaped when they are inserted, except `Markup`, which only templates and drawings of this package make. An
undefined name in a template is an error.

In a template, `source(name)` inserts a style or script of the package unchanged. The filter `tojson` writes data so
that it cannot end the element that holds it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["Markup", "macro", "render", "source"]

_PACKAGE = "driftlens"


def render(name: str, /, **values: Any) -> str:
    """Fill a template with values."""
    return _environment().get_template(name).render(**values)


def macro(name: str, of: str) -> Any:
    """Return a template's macro as a function that returns `Markup`."""
    return getattr(_environment().get_template(of).module, name)


@cache
def source(name: str) -> str:
    """Return the text of a file of the package, e.g. "human/page.css"."""
    return files(_PACKAGE).joinpath(name).read_text("utf-8")


def _inlined(name: str) -> Markup:
    return Markup(source(name))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names: Any = environment.globals
    names["source"] = _inlined
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    return environment
