"""The code blocks of the README and of docs/, and what may be said about them.

A comment before a block decides on it, and readers of the rendered page do not see it:

* ``<!-- not run: REASON -->``: the block needs a GPU, the network or minutes; it is only compiled, and the names
  that it imports, the options and make targets that it names are looked up;
* ``<!-- slow -->``: it is run with ``-m slow`` only, as are the Python blocks after it on the page.

A ``text`` block right behind a block that is run shows what that prints.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType

from tests.support.places import ROOT

PAGES = tuple(sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]))
LANGUAGES = ("python", "sh", "text", "json", "toml")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>not run: [^>]+|slow) -->\n+)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$"
    r"(?:\n\n^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block, the page's line on which its code begins, and the output shown behind it."""

    page: Path
    line: int
    language: str
    code: str
    marker: str | None
    output: str | None

    @property
    def not_run(self) -> bool:
        return bool(self.marker and self.marker.startswith("not run"))

    @property
    def slow(self) -> bool:
        return self.marker == "slow"

    def compiled(self) -> CodeType:
        """The code, in whose tracebacks the page's own lines stand."""
        return compile("\n" * (self.line - 1) + self.code, str(self.page), "exec")

    def commands(self) -> Iterator[str]:
        """The commands of a shell block, continued lines joined, comments cut."""
        for line in self.code.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield command


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("code")) + 1,
            language=match["language"],
            code=match["code"],
            marker=match["marker"],
            output=match["output"],
        )
        for match in _BLOCK.finditer(text)
    ]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def missing_imports(code: str) -> list[str]:
    """What a block takes from driftlens that is not there."""
    missing: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("driftlens"):
            module = import_module(node.module or "")
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    return missing


def assert_prints(printed: str, shown: str) -> None:
    """Words and their order must be as shown, and numbers near: another CPU may round otherwise."""
    words, expected = printed.split(), shown.split()
    assert len(words) == len(expected), f"prints\n{printed}\nbut the page shows\n{shown}"
    for word, wanted in zip(words, expected, strict=True):
        assert _NUMBER.sub("0", word) == _NUMBER.sub("0", wanted), f"prints\n{printed}\nbut the page shows\n{shown}"
        for number, target in zip(_NUMBER.findall(word), _NUMBER.findall(wanted), strict=True):
            found, value = (float(text.replace("−", "-")) for text in (number, target))
            assert abs(found - value) <= max(0.03, 0.05 * abs(value)), f"prints {word}, but the page shows {wanted}"
