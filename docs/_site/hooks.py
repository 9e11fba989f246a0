"""What mkdocs does beyond Markdown: the README, the changelog and the gallery become pages, equations become MathML.

The README is the home page, word for word: only its links into docs/ are rewritten to the site's places.
"""

import html as entities
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_SHOWN = (".md", ".png", ".html", ".csv", ".json", ".parquet", ".js")
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
    readme = (root / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(root / "CHANGELOG.md")))
    for path in sorted((root / "figures").rglob("*")):
        if path.suffix in _SHOWN:
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


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
