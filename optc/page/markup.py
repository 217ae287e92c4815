"""Small pieces of HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already."""


def text(value: object) -> str:
    """Anything as text that means nothing as HTML."""
    return html.escape(str(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A table.

    Args:
        heads: Headings.
        rows: Cells, as :class:`Markup` where they are HTML.
        numbers: Headings of the columns of numbers.
    """

    def cell(tag: str, head: str, value: object) -> str:
        kind = " class='number'" if head in numbers else ""
        return f"<{tag}{kind}>{value if isinstance(value, Markup) else text(value)}</{tag}>"

    head = "".join(cell("th", name, name) for name in heads)
    lines = ["".join(cell("td", name, value) for name, value in zip(heads, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def items(lines: Iterable[object]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{line if isinstance(line, Markup) else text(line)}</li>' for line in lines)}</ul>"
