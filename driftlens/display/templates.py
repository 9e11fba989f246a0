"""The one Jinja environment of every page and card.

Templates are `.html` files beside the modules that fill them, named by their place in the package
("clinics/page.html"). A value is escaped where it is put in, unless it is `Markup`, which only this package's templates
and drawings make. A name that a template uses and is not given is an error.

In a template, `source(name)` is a style or script that lies in the package, put in as it is, and the filter `tojson`
writes data in which no character can end the element that holds it.
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
    """A template filled with values."""
    return _environment().get_template(name).render(**values)


def macro(name: str, of: str) -> Any:
    """A template's macro, as a function that returns `Markup`."""
    return getattr(_environment().get_template(of).module, name)


@cache
def source(name: str) -> str:
    """A file of the package, e.g. "human/page.css"."""
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
