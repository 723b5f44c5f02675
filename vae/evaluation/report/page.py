"""The page: everything an evaluation found, in one file without any request."""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vae.data.files import write_beside
from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.report import graphs, sections
from vae.evaluation.report.pictures import RankedExample
from vae.evaluation.table import strict

PAGE = "index.html"


def write_report(
    folder: str | os.PathLike,
    content: dict[str, Any],
    evaluation: Evaluation,
    photographs: PhotographEvaluation | None,
    examples: Sequence[RankedExample],
    originals: np.ndarray,
    reconstructions: np.ndarray,
) -> None:
    """Writes `index.html` into a folder; finished or not at all.

    Args:
      folder: Where to.
      content: What results.json holds: the figures, and config, split, step, dataset, data, model,
        version, command, date, parameters and curves.
      evaluation: The tiles' figures.
      photographs: Whole ones, with pictures where there are any.
      examples: Tiles to show, of `pictures.pick`.
      originals: uint8 [len(examples), H, W, 3].
      reconstructions: Like `originals`.
    """
    page = render(content, evaluation, photographs, examples, originals, reconstructions)
    # Names of files may hold halves of surrogate pairs, which UTF-8 has not.
    write_beside(Path(folder) / PAGE, page.encode("utf-8", "replace"))


def render(
    content: dict[str, Any],
    evaluation: Evaluation,
    photographs: PhotographEvaluation | None,
    examples: Sequence[RankedExample],
    originals: np.ndarray,
    reconstructions: np.ndarray,
) -> str:
    """The page as text; see `write_report`."""
    body = [
        sections.header(content),
        sections.headline(content),
        sections.codecs(content),
        graphs.curves(content),
        graphs.distribution(evaluation),
        sections.tiles(examples, originals, reconstructions),
        sections.labels(content, evaluation),
        sections.whole(photographs),
        sections.conventions(content),
        sections.provenance(content),
    ]
    return document(sections.title(content), body, content)


def document(title: str, body: Sequence[str], content: dict[str, Any]) -> str:
    """A page of sections that are HTML, with the figures inside it as JSON."""
    style, script = (
        (resources.files(__package__) / name).read_text("utf-8")
        for name in ("style.css", "viewer.js")
    )
    # Nothing may be fetched and no script runs but this one, whatever a file is named.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{"".join(body)}
</main>
<script type="application/json" id="results">{_embedded(content)}</script>
<script>{script}</script>
</body>
</html>
"""


def _embedded(content: dict[str, Any]) -> str:
    """JSON that cannot end its element, whatever it holds."""
    text = json.dumps(strict(content), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
