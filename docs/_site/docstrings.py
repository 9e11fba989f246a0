"""Docstrings as Markdown: their reStructuredText roles become links or code, their simple tables Markdown's."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):`(?P<short>~?)(?P<name>[\w.]+)`")
_RULE = re.compile(r"=+(?: +=+)+")


class PlainMarkdown(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Docstrings of modules, classes, functions and attributes alike."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring without roles and simple tables."""
    lines: list[str] = []
    remaining = iter(text.split("\n"))
    for line in remaining:
        if not _RULE.fullmatch(line.strip()):
            lines.append(line)
            continue
        columns = [match.span() for match in re.finditer("=+", line)]
        head = next(remaining)
        next(remaining)  # the rule under the head
        lines += ["", _row(head, columns), "|" + " --- |" * len(columns)]
        for row in remaining:
            if _RULE.fullmatch(row.strip()):
                break
            lines.append(_row(row, columns))
        lines.append("")
    return _ROLE.sub(_code, "\n".join(lines))


def _row(line: str, columns: list[tuple[int, int]]) -> str:
    starts = [start for start, _ in columns]
    ends = [*starts[1:], None]
    cells = (line[start:end].strip().replace("|", "\\|") for start, end in zip(starts, ends, strict=True))
    return "| " + " | ".join(cells) + " |"


def _code(match: re.Match[str]) -> str:
    name = match["name"]
    shown = name.rsplit(".", 1)[-1] if match["short"] else name
    if "." not in name:
        return f"`{shown}`"
    # A link where the site has that object, code where it has not.
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
