"""The page of a run of `enhance`: each photograph before and after, with a slider between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vae.data.files import write_beside
from vae.inference.templates import environment, policy_hash

PAGE, PREVIEWS = "index.html", "previews"
# Longer side of the pictures of the page, pixels.
SIDE = 1400
_SCRIPT = """
for (const slider of document.querySelectorAll("input")) {
  const show = () =>
    slider.previousElementSibling.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
"""


def write_page(
    out: Path,
    rows: Sequence[Mapping[str, str | int | float]],
    folders: Mapping[str, str],
    suffix: str,
    origin: Mapping[str, str],
) -> Path:
    """Writes `index.html` into the folder of the results.

    Args:
      out: Folder of the results.
      rows: Rows of the table.
      folders: Names of the folders "enhanced" and "changes" below `out`.
      suffix: Suffix of the files in them.
      origin: Provenance.

    Returns:
      Path of the page.
    """
    named = [
        {
            **row,
            "quality": float(row["quality"]),
            "file": f"{row['id']}{suffix}",
            "before": preview_name(str(row["id"]), "before"),
            "after": preview_name(str(row["id"]), "after"),
        }
        for row in rows
    ]
    # The page's policy allows only this script and only files beside it.
    page = (
        environment(__package__)
        .get_template("enhanced.html.j2")
        .render(
            rows=named,
            folders={**folders, "previews": PREVIEWS},
            side=SIDE,
            origin=origin,
            script=_SCRIPT,
            digest=policy_hash(_SCRIPT),
        )
    )
    # File names may contain lone surrogates, which UTF-8 cannot encode.
    write_beside(out / PAGE, page.encode("utf-8", "replace"))
    return out / PAGE


def preview_name(item_id: str, which: str) -> str:
    """Returns the path of a preview below the folder of previews."""
    return f"{item_id}_{which}.jpg"
