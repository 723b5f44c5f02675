"""The HTML report: well-formed, safe, consistent with results.json; its curves."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

from vae.checkpoints.loading import load_saved
from vae.evaluation.curves import truncate
from vae.evaluation.photographs import PhotographEvaluation
from vae.evaluation.report import pick, write_report
from vae.evaluation.report.pictures import choose_gain, tile_views
from vae.evaluation.run import evaluate_model
from vae.models.pca import fit_pca

VOID = {"meta", "img", "br"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> ü&'</style></script>"


SVG = "data:image/svg+xml;base64,"


def tags_of(plot):
    """Returns the names of the elements of a plot (XML)."""
    svg = ElementTree.fromstring(base64.b64decode(plot["src"].removeprefix(SVG)))
    return {element.tag.rpartition("}")[2] for element in svg.iter()}


class Page(html.parser.HTMLParser):
    """Parser that collects the elements of a page and fails on wrong nesting."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def tags(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(finished, tiny_data, tmp_path_factory):
    """Reports on the finished run; returns (folder of the report, evaluation)."""
    folder = tmp_path_factory.mktemp("report") / "new"
    saved = load_saved(finished[1])
    evaluation = evaluate_model(
        saved,
        tiny_data,
        split="train",
        limit=12,
        report=folder,
        other_models={saved.config.name: saved},
    )
    return folder, evaluation


@pytest.fixture(scope="module")
def content(report):
    return json.loads((report[0] / "results.json").read_text())


@pytest.fixture(scope="module")
def page(report):
    return (report[0] / "index.html").read_text()


def write(folder, content, evaluation, photographs=None):
    """Writes the report of black tiles; returns the bytes of the page."""
    examples = pick(evaluation)
    tiles = np.zeros((len(examples), *evaluation.size, 3), np.uint8)
    page = write_report(folder, content, evaluation, photographs, examples, tiles, tiles)
    return page.read_bytes()


def test_page_is_one_file_without_external_resources(page):
    parsed = Page(page)
    assert len(page) < 8 << 20
    for _, attributes in parsed.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "data:image/").startswith("data:image/")
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[\w+/=]*", "", page))
    # The security policy allows only the script on the page.
    (policy,) = [tag["content"] for tag in parsed.tags("meta") if "http-equiv" in tag]
    data, script = parsed.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert json.loads(data)["model"]


def test_another_model_is_measured_on_the_same_tiles(content):
    this, other = (point for point in content["curves"]["points"] if point["codec"] == "model")
    assert (this["setting"], other["setting"]) == ("this model", "fundus256_smoke")
    for key in ("latents", "bytes", "ssim", "psnr"):
        assert this[key] == pytest.approx(other[key], rel=1e-6)
    # Noise depends on a tile's position: in the split for one model, in the sample for the other.
    for key in ("ssim_sampled", "psnr_sampled"):
        assert this[key] == pytest.approx(other[key], rel=0.02)


def test_page_has_the_numbers_of_the_results(report, page, content):
    assert sorted(path.name for path in report[0].iterdir()) == ["index.html", "results.json"]
    parsed = Page(page)
    assert json.loads(parsed.texts["script"][0]) == content
    cells = parsed.texts["td"]
    for row in content["rows"]:
        assert f"{row['ssim']:.4f}" in cells and f"{row['psnr']:.2f}" in cells
        assert f"{row['bytes']:,.0f}" in cells
        low, high = row["interval"]["ssim"]
        assert f"{low:.4f}–{high:.4f}" in parsed.texts["small"]
    for row in content["labels"]:
        assert row["label"] in parsed.texts["th"] and f"{row['ssim']:.4f}" in cells
    for row in content["photographs"]["rows"]:
        assert row["photograph"] in parsed.texts["th"] and f"{row['tile_ssim']:.4f}" in cells
    for key in ("model", "command", "dataset", "date", "data"):
        assert content[key] in parsed.texts["code"]


def test_page_has_its_plots_and_pictures(page, content):
    shown = Page(page).tags("img")
    drawn = [image for image in shown if image["src"].startswith(SVG)]
    assert [image["alt"] for image in drawn] == [
        "SSIM and PSNR against latent values and bytes a tile",
        "Histogram of SSIM",
        *[""] * len(content["labels"]),
    ]
    for image in drawn:
        tags = tags_of(image)
        # No font and no date, so that plots are the same on every machine.
        assert "path" in tags and not tags & {"text", "date", "script"}
    assert all(point["setting"] in Page(page).texts["th"] for point in content["curves"]["points"])
    ranks = [text for text in Page(page).texts["h3"] if text in ("worst", "median", "best")]
    assert ranks == ["worst", "median", "best"]
    tiles = [image for image in shown if image["src"].startswith("data:image/png")]
    assert len(tiles) >= 9 and len(tiles) % 3 == 0
    assert {(image["width"], image["height"]) for image in tiles} == {("32", "32")}
    photographs = min(len(content["photographs"]["rows"]), 2)
    assert len(shown) == len(drawn) + len(tiles) + 3 * photographs


def test_the_same_results_give_the_same_page(report, content, tmp_path):
    assert write(tmp_path, content, report[1]) == write(tmp_path, content, report[1])


def test_file_names_are_escaped(report, content, tmp_path):
    """All texts from a user's files and command line are escaped, and the page still parses."""
    evaluation = report[1]

    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [spoil(entry) for entry in value]
        return value + HOSTILE if isinstance(value, str) else value

    names = ("label", "command", "data", "config", "split", "notes", "version", "dataset", "curves")
    hostile = content | {key: spoil(content[key]) for key in names if key in content}
    for point, kept in zip(hostile["curves"]["points"], content["curves"]["points"], strict=True):
        point["codec"] = kept["codec"]
        point["setting"] += " odd \udcff $x^"
    hostile["labels"] = [row | {"label": row["label"] + HOSTILE} for row in content["labels"]]
    columns = {
        key: np.array([name + HOSTILE for name in values]) if values.dtype.kind == "U" else values
        for key, values in evaluation.tiles.items()
    }
    evaluation = dataclasses.replace(evaluation, tiles=columns, labels=hostile["labels"])
    name = f"odd \udcff {HOSTILE}"
    row = {"photograph": name, "height": 9, "width": 9, "ssim": 0.9, "psnr": 40.0,
           "tile_ssim": 0.9, "tile_psnr": 40.0}  # fmt: skip
    picture = [np.zeros((9, 9, 3), np.uint8)] * 2 + [np.zeros((9, 9, 3), np.float32)]
    photographs = PhotographEvaluation([row], [HOSTILE], {name: picture})
    parsed = Page(write(tmp_path, hostile, evaluation, photographs).decode())
    assert len(parsed.tags("script")) == 2
    assert all(image["src"].startswith("data:image/") for image in parsed.tags("img"))
    assert all("script" not in tags_of(image) for image in parsed.tags("img")
               if image["src"].startswith(SVG))  # fmt: skip
    handlers = [a for _, attributes in parsed.elements for a in attributes if a.startswith("on")]
    assert handlers == []
    assert json.loads(parsed.texts["script"][0])["command"] == hostile["command"]
    assert any(HOSTILE in text for text in parsed.texts["th"])
    assert any(HOSTILE in text for text in parsed.texts["figcaption"])


def test_page_of_one_patient_and_no_photographs(report, content, tmp_path):
    rows = [row | {"interval": None} for row in content["rows"] if row["name"] != "pca"]
    labels = [
        {key: value for key, value in row.items() if not key.startswith("pca")}
        for row in content["labels"]
    ]
    points = [point for point in content["curves"]["points"] if point["codec"] == "model"]
    lone = content | {
        "rows": rows,
        "labels": labels,
        "curves": {"tiles": 1, "points": points},
        "scale": None,
        "patients_known": False,
    }
    text = write(tmp_path, lone, report[1]).decode()
    Page(text)
    assert "one patient: no interval" in text and "unknown who is who" in text
    assert "Over PCA" not in text and "Whole photographs" not in text
    assert "nan" not in re.sub(r"<script.*", "", text, flags=re.S).lower().split()


def test_examples_are_of_different_photographs():
    ssim = np.linspace(0.5, 0.99, 40)
    ssim[3] = np.nan
    tiles = {
        "ssim": ssim,
        "psnr": np.full(40, 40.0),
        "tile_id": np.array([f"t{i}" for i in range(40)]),
        "photograph": np.array([f"p{i // 4}" for i in range(40)]),
    }
    evaluation = dataclasses.make_dataclass("Figures", ["tiles", "size"])(tiles, (64, 64))
    examples = pick(evaluation)
    assert [(example.rank, example.row) for example in examples] == [
        ("worst", 0), ("worst", 4), ("worst", 8),
        ("median", 20), ("median", 19), ("median", 24),
        ("best", 39), ("best", 35), ("best", 31),
    ]  # fmt: skip
    large = dataclasses.replace(evaluation, size=(1024, 1024))
    assert [example.rank for example in pick(large)] == ["worst", "median", "best"]


def test_only_the_centre_of_large_tiles_is_shown():
    a = np.random.default_rng(0).integers(0, 256, (700, 600, 3), np.uint8)
    b = np.full_like(a, 100)
    original, reconstruction, difference = tile_views(a, b)
    np.testing.assert_array_equal(original, a[94:606, 44:556])
    np.testing.assert_array_equal(difference, np.abs(original.astype(int) - reconstruction))


@pytest.mark.parametrize(
    ("error", "gain"), [(0, 50), (5, 50), (6, 20), (25, 10), (26, 5), (200, 1)]
)
def test_differences_are_amplified_until_visible(error, gain):
    assert choose_gain([np.full((8, 8, 3), error, np.int16), np.zeros((4, 4, 3))]) == gain


# --- The curves ----------------------------------------------------------------------------------


def test_curves_use_the_tiles_of_the_table(report, content):
    points, tiles = content["curves"]["points"], report[1].tiles
    counted = tiles["windows"] > 0
    assert content["curves"]["tiles"] == counted.sum()
    by_codec = {
        codec: [point for point in points if point["codec"] == codec]
        for codec in ("model", "pca", "bicubic", "jpeg")
    }
    (model,) = (point for point in by_codec["model"] if point["setting"] == "this model")
    rows = {row["name"]: row for row in content["rows"]}
    # The sample contains all tiles, so the model's point equals its row.
    for metric in ("ssim", "psnr"):
        assert model[metric] == pytest.approx(rows["model"][metric])
        assert model[f"{metric}_sampled"] == pytest.approx(rows["model_sampled"][metric])
    assert (model["latents"], model["bytes"]) == (
        rows["model"]["latents"],
        pytest.approx(rows["model"]["bytes"]),
    )
    four = next(point for point in by_codec["bicubic"] if point["setting"] == "reduced 4 times")
    assert four["ssim"] == pytest.approx(rows["bicubic_x4"]["ssim"])
    assert four["latents"] == rows["bicubic_x4"]["latents"]
    for codec, size in (("pca", "latents"), ("pca", "bytes"), ("jpeg", "bytes")):
        ordered = by_codec[codec]
        assert len(ordered) > 3
        for metric in (size, "psnr"):
            values = [point[metric] for point in ordered]
            assert values == sorted(values), (codec, metric)


def test_the_first_components_equal_a_smaller_fit():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    large, small = fit_pca([images], 20, 4), fit_pca([images], 5, 4)
    for ours, theirs in zip(
        jax.tree.leaves(truncate(large, 5)), jax.tree.leaves(small), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
