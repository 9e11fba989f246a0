"""What mkdocs does beyond Markdown: the README, the changelog and the gallery become pages, equations become MathML.

Pages are written for readers of the repository too: their links lead to files there, and are rewritten for the site.
"""

import html as entities
import posixpath
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_SHOWN = (".md", ".png", ".html", ".csv", ".json", ".parquet", ".js")
# Pages of the site that are files of the repository elsewhere.
_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(
    r"\[(?P<text>[^][]*(?:\[[^][]*\][^][]*)*)\]"
    r"\((?P<path>(?![a-z]+:|#|/)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)
_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)
_CONVERTER = LatexToMathML()
# What a browser fetches by itself: anything with a src, and stylesheets, icons and the like.
_FETCHED = re.compile(r"""<(?:[a-z]+\b[^>]*\bsrc|link\b[^>]*\bhref)=["']?((?:https?:)?//[^"'\s>]+)""")
_OWN_ADDRESS = re.compile(r"""<link\b[^>]*\brel=["']?(?:canonical|next|prev)\b""")


def on_files(files: Files, config: Any) -> Files:
    """Pages that lie outside docs/."""
    root = Path(config.config_file_path).parent
    for page, source in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    for path in sorted((root / "figures").rglob("*")):
        if path.suffix in _SHOWN:
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead to files of the repository lead to the site's pages of them; where it has none, text stays."""
    here = page.file.src_uri
    source = _PAGES.get(here) or (here if here.startswith("figures/") else f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        pages = {source: page for page, source in _PAGES.items()}
        target = pages.get(path) or (path if path.startswith("figures/") else path.removeprefix("docs/"))
        if target == path and not path.startswith("figures/"):
            return match["text"]
        place = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"[{match['text']}]({place}{match['anchor'] or ''})"

    return _LINK.sub(link, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Equations as MathML, which browsers render by themselves; one that cannot be read stops the build."""

    def mathml(match: re.Match[str]) -> str:
        block = match["block"] is not None
        latex = entities.unescape(match["block"] if block else match["inline"])
        try:
            converted = _CONVERTER.convert_with_local_state(latex.strip(), displaystyle=block)
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: cannot read the equation {latex!r}: {error}") from None
        return f'<div class="equation">{converted}</div>' if block else converted

    return _EQUATION.sub(mathml, html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A page that would make the reader's browser fetch something from elsewhere stops the build."""
    for match in _FETCHED.finditer(output):
        if not _OWN_ADDRESS.match(match[0]):
            raise PluginError(f"{page.file.src_uri}: the page would load {match[1]}")
    return output
