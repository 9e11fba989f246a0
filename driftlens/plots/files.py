"""Write figures to files: an HTML page that needs no network, and a PNG if Chrome or Chromium is installed."""

import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

from driftlens.display.templates import Markup, render
from driftlens.files import atomic_path, path_of

__all__ = ["figure_html", "figure_png", "save_figure"]


def save_figure(figure: go.Figure, path: str | PathLike[str]) -> list[Path]:
    """Write `path`.html, which needs no network, and `path`.png, and return the files written.

    The PNG needs Chrome or Chromium; without one, a warning says so.
    """
    stem = path_of(path)
    written = [stem.with_name(f"{stem.name}.html")]
    with atomic_path(written[0]) as temporary:
        temporary.write_bytes(figure_html(figure))
    picture, problem = figure_png(figure)
    if picture is None:
        warnings.warn(f"{stem.name}.png is not written: {problem}", RuntimeWarning, stacklevel=2)
        return written
    written.append(stem.with_name(f"{stem.name}.png"))
    with atomic_path(written[1]) as temporary:
        temporary.write_bytes(picture)
    return written


def figure_html(figure: go.Figure, *, plotlyjs: Literal["inside", "directory"] = "inside") -> bytes:
    """Return a self-contained page, or (`"directory"`) one that reads `plotly.min.js` (5 MB) from its own folder."""
    include = True if plotlyjs == "inside" else "directory"
    drawn: str = figure.to_html(include_plotlyjs=include, full_html=False, config={"displaylogo": False})
    title = re.sub(r"<[^>]*>", " ", figure.layout.title.text or "driftlens")
    # Both are HTML already, escaped for or by plotly.
    return render("plots/page.html", title=Markup(" ".join(title.split())), drawn=Markup(drawn)).encode()


def figure_png(figure: go.Figure, *, scale: float = 2.0) -> tuple[bytes | None, str]:
    """Return the figure as a PNG, or None and the reason in one line."""
    try:
        with _quiet_browser():
            return figure.to_image(format="png", scale=scale), ""
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        # No kaleido, no browser, or one that does not start; plotly's own message is a page long.
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return None, f"{first.rstrip('.:')} (a picture needs the extra 'image' and a Chrome or Chromium)"


@contextmanager
def _quiet_browser() -> Generator[None]:
    """Silence the tracebacks that a browser logs when it closes; they have no effect."""
    logger = logging.getLogger("choreographer")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
