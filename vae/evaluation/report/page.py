"""Rendering of a template to one HTML file that makes no requests."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from vae.data.files import write_beside
from vae.evaluation.aggregate import CONFIDENCE
from vae.evaluation.report.pictures import MAX_SIDE, SMALL_SIDE, data_uri
from vae.evaluation.table import strict
from vae.inference.templates import environment, policy_hash

PAGE = "index.html"


def write_page(
    folder: str | os.PathLike, template: str, content: dict[str, Any], **parts: Any
) -> Path:
    """Writes `index.html` into a folder, atomically.

    Args:
      folder: The folder.
      template: Name of a template in this package.
      content: The metrics; the page also contains them as JSON.
      **parts: Further variables of the template.

    Returns:
      Path of the file.
    """
    files = resources.files(__package__)
    style, script = ((files / name).read_text("utf-8") for name in ("style.css", "viewer.js"))
    # The page's policy allows only this script and no requests, whatever the files are named.
    page = _templates().get_template(template).render(
        content=content,
        plain=strict(content),
        style=style,
        script=script,
        digest=policy_hash(script),
        **parts,
    )  # fmt: skip
    # File names may contain lone surrogates, which UTF-8 cannot encode.
    write_beside(Path(folder) / PAGE, page.encode("utf-8", "replace"))
    return Path(folder) / PAGE


def _templates() -> jinja2.Environment:
    made = environment(__package__)
    made.filters |= {
        "number": number, "signed": signed, "count": count, "interval": interval,
        "data_uri": data_uri,
    }  # fmt: skip
    made.globals |= {
        "CONFIDENCE": f"{CONFIDENCE:.0%}", "MAX_SIDE": MAX_SIDE, "SMALL_SIDE": SMALL_SIDE,
    }  # fmt: skip
    return made


def number(value: float | None, form: str, unit: str = "") -> str:
    """Formats a number; a dash for None or NaN."""
    return "—" if value is None or np.isnan(value) else f"{value:{form}}{unit}"


def signed(value: float, form: str) -> str:
    """Formats a difference with its sign."""
    return f"{value:+{form}}".replace("-", "−")


def count(number: int, noun: str) -> str:
    """Formats a number with its noun, in the plural unless it is 1."""
    return f"{number:,d} {noun}{'' if number == 1 else 's'}"


def interval(row: dict[str, Any], metric: str, form: str) -> str:
    """Formats the interval of a row's metric; "" without an interval."""
    bounds = (row["interval"] or {}).get(metric)
    return f"{bounds[0]:{form}}–{bounds[1]:{form}}" if bounds else ""
