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
        columns = [match.start() for match in re.finditer("=+", line)]
        rows = [_cells(next(remaining), columns)]
        next(remaining)  # the rule under the head
        for row in remaining:
            if _RULE.fullmatch(row.strip()):
                break
            cells = _cells(row, columns)
            if cells[0]:
                rows.append(cells)
            else:  # the row above goes on
                rows[-1] = [f"{above} {more}".strip() for above, more in zip(rows[-1], cells, strict=True)]
        head, *body = ["| " + " | ".join(cells) + " |" for cells in rows]
        lines += ["", head, "|" + " --- |" * len(columns), *body, ""]
    return _ROLE.sub(_code, "\n".join(lines))


def _cells(line: str, starts: list[int]) -> list[str]:
    ends = [*starts[1:], None]
    return [line[start:end].strip().replace("|", "\\|") for start, end in zip(starts, ends, strict=True)]


def _code(match: re.Match[str]) -> str:
    name = match["name"]
    shown = name.rsplit(".", 1)[-1] if match["short"] else name
    if "." not in name:
        return f"`{shown}`"
    # A link where the site has that object, code where it has not.
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'
