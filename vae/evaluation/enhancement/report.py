"""The report page of an enhancer on degraded photographs, in one file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.evaluation.enhancement.cases import OTHERS, Shown
from vae.evaluation.enhancement.table import MODEL_ROW, NOTHING, WORSE, by_case
from vae.evaluation.report.page import write_page

_METHODS = {
    NOTHING: "do nothing",
    MODEL_ROW: "enhance",
    "clahe": "CLAHE",
    "unsharp_mask": "unsharp mask",
    "non_local_means": "non-local means",
    "wiener": "Wiener",
}


def write_report(
    folder: str | os.PathLike, content: dict[str, Any], examples: Sequence[Shown]
) -> Path:
    """Writes `index.html` into a folder, atomically.

    Args:
      folder: The folder.
      content: The content of enhancement.json.
      examples: Photographs to show.

    Returns:
      Path of the file.
    """
    table = by_case(content["rows"])
    first = next(iter(table.values()))
    return write_page(
        folder,
        "enhancement.html.j2",
        content,
        examples=examples,
        methods={name: label for name, label in _METHODS.items() if name in first},
        table=table,
        best={case: max(found, key=lambda m: found[m]["psnr"]) for case, found in table.items()},
        unseen=tuple(OTHERS),
        worse=WORSE,
    )
