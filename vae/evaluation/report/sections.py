"""The parts of the page, each HTML of what it is given; all text is escaped here."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from vae.evaluation.aggregate import CONFIDENCE
from vae.evaluation.evaluate import Evaluation
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.report import markup, pictures, plots

_CODECS = {
    "mean_colour": ("mean colour", "each tile painted in its mean"),
    "bicubic_x4": ("bicubic", "reduced four times and enlarged again"),
    "pca": ("PCA", "the linear codec of about the same latent size"),
    "pca_sampled": ("PCA, sampled", "the quality that belongs to its bytes"),
    "jpeg": ("JPEG", "at the quality nearest the model’s bytes"),
    "model": ("this model", "from the posterior mean"),
    "model_sampled": ("this model, sampled", "the quality that belongs to its bytes"),
}
# A step of JPEG's quality changes the bytes by up to so much.
_SAME_BYTES = 0.2
_CONVENTIONS = (
    (
        "SSIM",
        "Gaussian window of 11 pixels, sigma 1.5, K 0.01 and 0.03, data range 1, mean over RGB, on "
        "the 8-bit reconstruction, at the positions whose whole window lies inside the field of "
        "view; then the mean over tiles.",
    ),
    ("PSNR", "Per tile over the pixels of the field of view, peak 255; then the mean over tiles."),
    (
        f"{CONFIDENCE:.0%}",
        "A bootstrap over patients, not over tiles, which overlap and resemble each other; none "
        "with a single patient.",
    ),
    (
        "ratio",
        "Input values (height × width × 3) over latent values. It says nothing about bytes.",
    ),
    (
        "bytes",
        "KL/8 of the posterior, what an ideal coder needs for samples of it: it belongs to the "
        "quality of the sampled rows. A posterior mean has no finite rate; “as fp16” is the size "
        "of the means as stored.",
    ),
)


def title(content: dict[str, Any]) -> str:
    """Of the window, as plain text."""
    return f"{content['config']}, step {content['step']}: split {content['split']}"


def header(content: dict[str, Any]) -> str:
    """What was evaluated on what."""
    counts, (height, width) = content["counts"], content["size"]
    scale = "unknown scale" if content["scale"] is None else f"scale {content['scale']:g}"
    known = "" if content["patients_known"] else " (unknown who is who)"
    limited = " · a random sample" if content["limit"] else ""
    return f"""
<header>
<p class="kind">Evaluation of a fundus-photograph autoencoder</p>
<h1>{escape(content["config"])}</h1>
<p class="facts"><b>step {content["step"]:,d}</b> · {content["parameters"]:,d} parameters ·
model <code>{escape(content["model"])}</code></p>
<p class="facts">split <b>{escape(content["split"])}</b>{limited} ·
{markup.count(counts["tiles"], "tile")} of {height} × {width} pixels ·
{markup.count(counts["photographs"], "photograph")} ·
{markup.count(counts["patients"], "patient")}{known} · {scale}</p>
</header>"""


def headline(content: dict[str, Any]) -> str:
    """The few figures that matter, and what they stand beside."""
    rows = {row["name"]: row for row in content["rows"]}
    model, sampled = rows["model"], rows["model_sampled"]
    pixels = content["size"][0] * content["size"][1]
    cards = [
        markup.card("SSIM", f"{model['ssim']:.4f}", markup.confidence(model, "ssim", ".4f")),
        markup.card("PSNR", f"{model['psnr']:.2f}", markup.confidence(model, "psnr", ".2f"), "dB"),
        markup.card(
            "Latent",
            f"{model['ratio']:.3g} : 1",
            f"{model['latents']:,d} values for {3 * pixels:,d}",
        ),
        markup.card(
            "Rate",
            f"{model['bytes'] / 1000:.4g}",
            f"{8 * model['bytes'] / pixels:.3g} bits a pixel, for posterior samples",
            "kB a tile",
        ),
    ]
    beside_jpeg = "Samples over JPEG of their bytes"
    # Below some size there is no JPEG at all, above some there is none either.
    jpeg_bytes = rows["jpeg"]["bytes"] if "jpeg" in rows else sampled["bytes"]
    if abs(jpeg_bytes - sampled["bytes"]) > _SAME_BYTES * sampled["bytes"]:
        beside_jpeg = f"Samples over the nearest JPEG, {jpeg_bytes / 1000:.3g} kB"
    for name, ours, words in (
        ("pca", model, "Over PCA of its size"),
        ("jpeg", sampled, beside_jpeg),
    ):
        if name in rows:
            psnr, ssim = (ours[figure] - rows[name][figure] for figure in ("psnr", "ssim"))
            cards.append(
                markup.card(
                    words,
                    f"{markup.signed(psnr, '.2f')}",
                    f"SSIM {markup.signed(ssim, '.4f')}",
                    "dB",
                )
            )
    return f'<section class="cards" aria-label="Main figures">{"".join(cards)}</section>'


def codecs(content: dict[str, Any]) -> str:
    """The table of results.json's rows."""
    columns = ["codec", "SSIM", "PSNR, dB", "latents", "ratio", "bytes", "as fp16"]
    body = []
    for row in content["rows"]:
        name, words = _CODECS[row["name"]]
        emphasis = ' class="ours"' if row["name"].startswith("model") else ""
        cells = [
            markup.number(row["latents"], ",d"),
            markup.number(row["ratio"], ",.4g" if (row["ratio"] or 0) < 1000 else ",.0f", " : 1"),
            markup.number(row["bytes"], ",.0f"),
            markup.number(row["bytes_fp16"], ",d"),
        ]
        quality = "".join(
            f"<td>{row[figure]:{form}}<small>{markup.interval(row, figure, form)}</small></td>"
            for figure, form in (("ssim", ".4f"), ("psnr", ".2f"))
        )
        body.append(f"<tr{emphasis}>{markup.th(name, words)}{quality}{markup.tds(cells)}</tr>")
    note = (
        f"Below a figure, its {CONFIDENCE:.0%} interval over patients. For posterior samples "
        "“bytes” is KL/8, what an ideal coder needs; for JPEG the size of the files; for the first "
        "two rows one byte a value."
    )
    return markup.section(
        "Beside what everyone can check",
        markup.table(columns, body) + f'<p class="note">{note}</p>',
    )


def tiles(
    examples: Sequence[pictures.RankedExample], originals: np.ndarray, reconstructions: np.ndarray
) -> str:
    """Tiles by rank, each with its difference."""
    views = [pictures.tile_views(a, b) for a, b in zip(originals, reconstructions, strict=True)]
    gain, parts = pictures.choose_gain([difference for _, _, difference in views]), []
    for rank in pictures.RANKS:
        triples = [
            pictures.triple(view, example.caption, gain=gain, lossless=True)
            for example, view in zip(examples, views, strict=True)
            if example.rank == rank
        ]
        if triples:
            parts.append(f"<h3>{rank}</h3>{''.join(triples)}")
    cut = ""
    if max(originals.shape[1:3]) > pictures.MAX_SIDE:
        cut = f" Shown: the central {pictures.MAX_SIDE} pixels."
    note = (
        "By SSIM, of different photographs. Left to right: original, reconstruction from the "
        f"posterior mean, {gain} × the absolute difference. Pixels are lossless.{cut} "
        "Select a picture to enlarge it; the arrow keys then switch between the three in place."
    )
    return markup.section(
        "Worst, median and best tiles", f'<p class="note">{note}</p>{"".join(parts)}'
    )


def labels(content: dict[str, Any], evaluation: Evaluation) -> str:
    """A row per label."""
    rows = content["labels"]
    counted = evaluation.tiles["windows"] > 0
    ssim, label = evaluation.tiles["ssim"][counted], evaluation.tiles["label"][counted]
    low = float(np.percentile(ssim, 1))
    with_pca = all("pca_ssim" in row for row in rows)
    columns = ["label", "tiles", "patients", "SSIM", "PSNR, dB"]
    columns += ["over PCA, SSIM", "over PCA, dB"] if with_pca else []
    columns.append(f"SSIM of its tiles, {low:.3f} to 1")
    body = []
    for row in rows:
        cells = [
            f"{row['tiles']:,d}",
            f"{row['patients']:,d}",
            f"{row['ssim']:.4f}",
            f"{row['psnr']:.2f}",
        ]
        if with_pca:
            cells += [
                markup.signed(row["ssim"] - row["pca_ssim"], ".4f"),
                markup.signed(row["psnr"] - row["pca_psnr"], ".2f"),
            ]
        strip = plots.strip(ssim[label == row["label"]], min(low, 0.9999), 1.0)
        body.append(
            f"<tr>{markup.th(row['label'] or '(no label)')}{markup.tds(cells)}<td>{strip}</td></tr>"
        )
    note = (
        "A label is the folder that a photograph came from, in most collections its data set or "
        "its camera. The strip runs from the 5th to the 95th percentile of the label’s tiles, "
        "thick between the quartiles, with a dot at the mean."
    )
    return markup.section(
        "By label and camera", markup.table(columns, body) + f'<p class="note">{note}</p>'
    )


def whole(photographs: PhotographEvaluation | None) -> str:
    """Whole photographs beside the tiles cut from them; nothing where none were measured."""
    if photographs is None:
        return ""
    notes = "".join(f'<p class="note">{escape(note)}.</p>' for note in photographs.notes)
    if not photographs.rows:
        return markup.section("Whole photographs", notes)
    columns = ["photograph", "pixels", "SSIM", "PSNR, dB", "SSIM of its tiles", "PSNR of its tiles"]
    means = markup.th(f"mean of {len(photographs.rows)}")
    body = [f'<tr class="ours">{means}<td></td>{_photograph_cells(photographs.means)}</tr>']
    for row in photographs.rows:
        size = f"<td>{row['width']:,d} × {row['height']:,d}</td>"
        body.append(f"<tr>{markup.th(row['photograph'])}{size}{_photograph_cells(row)}</tr>")
    shown = pictures.pick_photographs(photographs)
    views = [photographs.pictures[row["photograph"]] for _, row in shown]
    gain = pictures.choose_gain([difference for _, _, difference in views]) if views else 1
    triples = []
    for (rank, row), view in zip(shown, views, strict=True):
        caption = f"{rank}: {row['photograph']}, SSIM {row['ssim']:.4f}, {row['psnr']:.1f} dB"
        triples.append(pictures.triple(view, caption, gain=gain, lossless=False))
    note = (
        "Put through the model whole, in windows, and measured inside the field of view. PSNR is "
        "lower than the tiles’, which mostly avoid the sharp rim of the field of view; compare the "
        "SSIM. The pictures are reduced, the "
        f"difference ({gain} ×) after it was taken."
    )
    return markup.section(
        "Whole photographs",
        markup.table(columns, body) + f'<p class="note">{note}</p>{notes}' + "".join(triples),
    )


def conventions(content: dict[str, Any]) -> str:
    """What the figures mean, and what has to be said beside them."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in content["notes"][1:])
    notes = f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""
    return markup.section("How to read the figures", markup.definitions(_CONVENTIONS) + notes)


def provenance(content: dict[str, Any]) -> str:
    """What made the page."""
    return made_by(content, "results.json")


def made_by(content: dict[str, Any], figures: str) -> str:
    """Model, data, command, and the file of figures beside the page, `figures`."""
    items = [
        ("model", content["model"]),
        ("step", f"{content['step']:,d}"),
        ("data", content["data"]),
        ("fingerprint", content["dataset"]),
        ("version", f"fundus-vae {content['version']}"),
        ("command", content["command"]),
        ("date", content["date"]),
    ]
    return (
        markup.section("Where this comes from", markup.definitions(items, code=True))
        + "<footer>Research software, not for diagnosis: what a model gives is not the photograph. "
        f"The same figures are in {figures} beside this page and inside it.</footer>"
    )


def _photograph_cells(row: dict[str, Any]) -> str:
    return markup.tds(
        [
            f"{row['ssim']:.4f}",
            f"{row['psnr']:.2f}",
            f"{row['tile_ssim']:.4f}",
            f"{row['tile_psnr']:.2f}",
        ]
    )
