"""The page of an enhancer: what it did to tiles that were degraded on purpose, in one file."""

import dataclasses
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vae.data.files import write_beside
from vae.evaluation.aggregate import CONFIDENCE
from vae.evaluation.enhancement.table import NOTHING, OURS, averaged
from vae.evaluation.report import graphs, markup, page, pictures, plots, sections

METHODS = {
    NOTHING: ("do nothing", "the degraded tile"),
    OURS: ("this model", ""),
    "clahe": ("CLAHE", "local histograms"),
    "unsharp_mask": ("unsharp mask", "Gaussian of 2 pixels"),
    "non_local_means": ("non-local means", "as strong as the grain"),
    "wiener": ("Wiener", "deconvolution, Gaussian of 1.5 pixels"),
}
# Colour and marker of the methods in the curves. CLAHE changes clean tiles by 18 dB: no curve of
# the others could be told from a line beside it.
_CURVES = {
    "unsharp_mask": ("bicubic", "triangle"),
    "non_local_means": ("jpeg", "square"),
    "wiener": ("l6", "triangle"),
    NOTHING: ("pca", "circle"),
    OURS: ("model", "diamond"),
}
_FORMS = (("psnr", ".2f"), ("ssim", ".4f"), ("vesselness", ".3f"))
_CONVENTIONS = (
    ("artificial", "Every degradation on this page was computed. What a camera makes bad by "
     "itself is not measured here."),
    ("mixed", "Each degradation with the probability and the range of severities of training, "
     "drawn for each photograph."),
    ("SSIM, PSNR", "Of 8-bit tiles with the clean ones, inside the field of view. A tile that is "
     "equal to the clean one counts as 88.13 dB."),
    ("vesselness", "Correlation of Frangi's vesselness of green with the clean tile's."),
    ("false, missed vessels", "Share of the pixels of no vessel that look like one; share of the "
     "vessels' pixels that do not any more."),
    ("spots kept", "Contrast of small bright and dark spots, exudates and bleedings among them, as "
     "a share of the clean tile's; median of a tile, mean over tiles."),
    (f"{CONFIDENCE:.0%}", "A bootstrap over patients."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shown:
    """A tile on the page: uint8 [S, S, 3] each.

    Attributes:
      caption: Plain text.
      before: Degraded.
      after: What the model makes of it.
      clean: The tile itself.
    """

    caption: str
    before: np.ndarray
    after: np.ndarray
    clean: np.ndarray


def write_report(
    folder: str | os.PathLike, content: dict[str, Any], examples: Sequence[Shown]
) -> None:
    """Writes `index.html` into a folder; finished or not at all.

    Args:
      folder: Where to.
      content: What enhancement.json holds.
      examples: Tiles to show.
    """
    write_beside(Path(folder) / page.PAGE, render(content, examples).encode("utf-8", "replace"))


def render(content: dict[str, Any], examples: Sequence[Shown]) -> str:
    """The page as text; see `write_report`."""
    body = [
        _header(content),
        _headline(content),
        _examples(examples),
        _table(content),
        _curves(content),
        _structure(content),
        _labels(content),
        _uncertainty(content["uncertainty"]),
        markup.section("How to read the figures", markup.definitions(_CONVENTIONS)),
        sections.made_by(content, "enhancement.json"),
    ]
    title = f"{content['config']}, step {content['step']}: split {content['split']}"
    return page.document(title, body, content)


def _header(content: dict[str, Any]) -> str:
    patients = max(row["patients"] for row in content["rows"])
    return f"""
<header>
<p class="kind">Evaluation of an enhancer of fundus photographs</p>
<h1>{escape(content["config"])}</h1>
<p class="facts"><b>step {content["step"]:,d}</b> ·
model <code>{escape(content["model"])}</code></p>
<p class="facts">split <b>{escape(content["split"])}</b> ·
{markup.count(content["tiles"], "tile")} of {markup.count(patients, "patient")},
degraded on purpose</p>
</header>"""


def _headline(content: dict[str, Any]) -> str:
    table = averaged(content["rows"])
    cards = []
    if "mixed" in table:
        before, after = table["mixed"][NOTHING], table["mixed"][OURS]
        for figure, name, form, unit in (
            ("psnr", "Several at once", ".2f", "dB"),
            ("ssim", "Several at once, SSIM", ".4f", ""),
            ("vesselness", "Several at once, vesselness", ".3f", ""),
        ):
            gain = markup.signed(after[figure] - before[figure], form)
            below = f"from {before[figure]:{form}} to {after[figure]:{form}}"
            cards.append(markup.card(name, gain, below, unit))
        for figure, name, form in (
            ("missed_vessels", "Several at once, vessels missed", ".1%"),
            ("lesions_kept", "Several at once, spots kept", ".2f"),
        ):
            if not np.isnan(after[figure]):
                below = f"where nothing is done {before[figure]:{form}}"
                cards.append(markup.card(name, f"{after[figure]:{form}}", below))
    if "clean" in table:
        clean = table["clean"][OURS]
        below = f"to themselves; {clean['psnr']:.1f} dB"
        cards.append(markup.card("Clean tiles, SSIM", f"{clean['ssim']:.4f}", below))
    return f'<section class="cards" aria-label="Main figures">{"".join(cards)}</section>'


def _examples(examples: Sequence[Shown]) -> str:
    figures = [
        pictures.row_of_views(
            (("before", one.before), ("after", one.after), ("clean", one.clean)),
            one.caption,
            lossless=True,
        )
        for one in examples
    ]
    note = (
        "Several degradations at once. Left to right: degraded on purpose, what the model makes of "
        "it, the clean tile, which it never saw. Select a picture to enlarge it; the arrow keys "
        "then switch between the three in place."
    )
    return markup.section("Before, after, clean", f'<p class="note">{note}</p>{"".join(figures)}')


def _table(content: dict[str, Any]) -> str:
    table = averaged(content["rows"])
    methods = [name for name in METHODS if name in next(iter(table.values()))]
    spans = {
        (row["degradation"], row["method"]): row["interval"]
        for row in content["rows"]
        if row["severity"] in (None, 0.0)
    }
    columns = ["degradation", *(METHODS[name][0] for name in methods)]
    body = []
    for degradation, found in table.items():
        best = max(methods, key=lambda name: np.nan_to_num(found[name]["psnr"], nan=-1))
        cells = []
        for name in methods:
            bounds = spans.get((degradation, name)) or {}
            words = []
            for figure, form in _FORMS:
                value, span = found[name][figure], bounds.get(figure)
                text = markup.number(None if np.isnan(value) else value, form)
                words.append(text + (f" ({span[0]:{form}}–{span[1]:{form}})" if span else ""))
            first = f"<b>{escape(words[0])}</b>" if name == best else escape(words[0])
            cells.append(f"<td>{first}<small>{escape(words[1])}<br>{escape(words[2])}</small></td>")
        name = markup.th(degradation.replace("_", " "))
        body.append(f"<tr>{name}{''.join(cells)}</tr>")
    note = (
        "PSNR in dB, below it SSIM and vesselness; means over tiles and severities. In brackets "
        f"the {CONFIDENCE:.0%} interval over patients, for the rows of one severity (all "
        "severities are in enhancement.json). Bold: the best PSNR."
    )
    return markup.section(
        "Beside doing nothing and classical methods",
        markup.table(columns, body) + f'<p class="note">{note}</p>',
    )


def _curves(content: dict[str, Any]) -> str:
    rows = [row for row in content["rows"] if row["severity"]]
    panels = []
    for degradation in dict.fromkeys(row["degradation"] for row in rows):
        for figure, label, form in (("psnr", "PSNR, dB", ".2f"), ("ssim", "SSIM", ".4f")):
            series = []
            for method, (colour, shape) in _CURVES.items():
                points = [
                    (row["severity"], row[figure], f"{METHODS[method][0]}, severity "
                     f"{row['severity']:.2g}: {row[figure]:{form}}")
                    for row in rows
                    if (row["degradation"], row["method"]) == (degradation, method)
                    and row[figure] is not None
                ]  # fmt: skip
                if points:
                    series.append(plots.Series(colour, points, shape))
            if series:
                name = degradation.replace("_", " ")
                panels.append(
                    plots.curve_plot(
                        series,
                        title=f"{label} against severity of {name}",
                        x_label=f"severity of {name}",
                        y_label=label,
                        x_format="{:.2g}".format,
                        y_top=1.0 if figure == "ssim" else np.inf,
                        log=False,
                    )
                )
    if not panels:
        return ""
    legend = "".join(
        graphs.legend(colour, METHODS[name][0], shape) for name, (colour, shape) in _CURVES.items()
    )
    note = (
        "Each degradation alone, at three severities; 1 is a photograph that would be taken again."
    )
    return markup.section(
        "By severity",
        f'<p class="note">{note} CLAHE is left out: it changes every tile by some 18 dB.</p>'
        f'<p class="legend">{legend}</p><div class="panels">{"".join(panels)}</div>',
    )


def _structure(content: dict[str, Any]) -> str:
    columns = ["degradation", "method", "vessels false", "vessels missed", "spots kept"]
    body = []
    for degradation, found in averaged(content["rows"]).items():
        for method in (NOTHING, OURS):
            row = found[method]
            cells = [
                markup.number(None if np.isnan(row[name]) else row[name], form)
                for name, form in (
                    ("false_vessels", ".2%"),
                    ("missed_vessels", ".1%"),
                    ("lesions_kept", ".2f"),
                )
            ]
            name = degradation.replace("_", " ")
            kind = ' class="ours"' if method == OURS else ""
            body.append(
                f"<tr{kind}>{markup.th(name)}{markup.tds([METHODS[method][0], *cells])}</tr>"
            )
    return markup.section("Anatomy kept, and none invented", markup.table(columns, body))


def _labels(content: dict[str, Any]) -> str:
    columns = ["label", "degradation", "spots a tile", "spots kept", "where nothing is done"]
    body = []
    for row in content["labels"]:
        cells = [
            row["degradation"].replace("_", " "),
            markup.number(row["lesions"], ".1f"),
            markup.number(row["lesions_kept"], ".2f"),
            markup.number(row["lesions_kept_before"], ".2f"),
        ]
        body.append(f"<tr>{markup.th(row['label'] or '(no label)')}{markup.tds(cells)}</tr>")
    return markup.section("Small spots by label", markup.table(columns, body))


def _uncertainty(found: dict[str, Any]) -> str:
    if found["ratio"] is None:
        return ""
    points = [
        (one["deviation"], one["error"], f"{one['deviation']:.3g} said, {one['error']:.3g} off")
        for one in found["bins"]
    ]
    top = max(max(point[:2]) for point in points)
    ideal = plots.Series("pca", [(0.0, 0.0, "as said"), (top, top, "as said")], "circle")
    plot = plots.curve_plot(
        [ideal, plots.Series("model", points, "diamond")],
        title="Error against uncertainty",
        x_label="uncertainty, grey levels",
        y_label="root mean square error, grey levels",
        x_format="{:.3g}".format,
        log=False,
    )
    note = (
        "Each mark is a tenth of the pixels of tiles under several degradations at once, by their "
        "uncertainty: the deviation over posterior samples and, where the tone was changed, how "
        "far off that usually is. On the dashed line it would be the error; all in all the error "
        f"is {found['ratio']:.2f} times the uncertainty."
    )
    return markup.section(
        "What the uncertainty says",
        f'<div class="panels">{plot}</div><p class="note">{escape(note)}</p>',
    )
