"""The pieces of HTML that the sections are made of.

Arguments are plain text and escaped here, unless they are said to be HTML.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from vae.evaluation.aggregate import CONFIDENCE

NOTHING = "—"


def section(heading: str, body: str) -> str:
    """A heading and what is below it, `body` in HTML."""
    return f"\n<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def table(columns: Sequence[str], body: Sequence[str]) -> str:
    """A table of rows that are HTML; where the screen is too narrow it scrolls by itself."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def th(name: str, words: str = "") -> str:
    """The name of a row, and a few words below it."""
    small = f"<small>{escape(words)}</small>" if words else ""
    return f'<th scope="row">{escape(name)}{small}</th>'


def tds(cells: Sequence[str]) -> str:
    """Cells of a row."""
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def definitions(items: Sequence[tuple[str, str]], *, code: bool = False) -> str:
    """Terms and what they mean, or as code what they are."""
    before, after = ("<code>", "</code>") if code else ("", "")
    listed = (f"<dt>{escape(a)}</dt><dd>{before}{escape(b)}{after}</dd>" for a, b in items)
    return f"<dl>{''.join(listed)}</dl>"


def card(name: str, value: str, below: str, unit: str = "") -> str:
    """A figure in large type."""
    small = f" <span>{escape(unit)}</span>" if unit else ""
    return (
        f'<div class="card"><p class="name">{escape(name)}</p>'
        f'<p class="value">{escape(value)}{small}</p><p class="below">{escape(below)}</p></div>'
    )


def interval(row: dict[str, Any], figure: str, form: str) -> str:
    """The bounds of a row's figure; "" where there is a single patient."""
    if row["interval"] is None:
        return ""
    low, high = row["interval"][figure]
    return f"{low:{form}}–{high:{form}}"


def confidence(row: dict[str, Any], figure: str, form: str) -> str:
    """The bounds of a row's figure and what they are, or why there are none."""
    bounds = interval(row, figure, form)
    return f"{CONFIDENCE:.0%}: {bounds}" if bounds else "one patient: no interval"


def signed(value: float, form: str) -> str:
    """A difference, with its sign."""
    return f"{value:+{form}}".replace("-", "−")


def number(value: float | int | None, form: str, unit: str = "") -> str:
    """A number, or a dash."""
    return NOTHING if value is None else f"{value:{form}}{unit}"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,d} {noun}{'' if number == 1 else 's'}"
