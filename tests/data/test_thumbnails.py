"""Thumbnails: contents, tile positions, storage in a dataset."""

import shutil

import numpy as np
import pytest

from vae.data.demo import prepare
from vae.data.errors import DataError
from vae.data.examples import read_examples
from vae.data.fov import UNKNOWN, FieldOfView
from vae.data.images import read_image
from vae.data.pipeline import eval_batches, open_dataset, train_batches
from vae.data.thumbnails import (
    MARGIN,
    THUMBNAIL,
    THUMBNAILS,
    circle_of,
    make_thumbnail,
    open_thumbnails,
    pack_thumbnails,
    write_thumbnail,
)
from vae.data.tiling import make_tiles


def painted(height, width):
    """Returns an image whose red grows with the row and green with the column; blue is constant."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 200 // height + 30, columns * 200 // width + 30, 0 * rows + 99], -1)


@pytest.mark.parametrize(
    "fov",
    [FieldOfView(130.0, 90.0, 80.0, 20.0, 165.0, 50.0, 209.0), UNKNOWN],
    ids=["known", "unknown"],
)
def test_a_thumbnail_has_the_colours_of_the_photograph(fov):
    photograph = painted(200, 300).astype(np.uint8)
    thumbnail = make_thumbnail(photograph, fov)
    assert thumbnail.shape == (THUMBNAIL, THUMBNAIL, 3) and thumbnail.dtype == np.uint8
    centre_y, centre_x, radius = circle_of(fov, 200, 300)
    checked = 0
    for row in range(2, THUMBNAIL, 5):
        for column in range(2, THUMBNAIL, 5):
            y = centre_y + ((row + 0.5) / THUMBNAIL * 2 - 1) * MARGIN * radius
            x = centre_x + ((column + 0.5) / THUMBNAIL * 2 - 1) * MARGIN * radius
            there = 3 < y < 196 and 3 < x < 296
            if fov.known:
                gap = np.hypot(y - fov.y, x - fov.x)
                there &= gap < fov.radius - 5 and fov.top + 4 < y < fov.bottom - 4
                if gap > fov.radius + 5 or y < fov.top - 5 or y > fov.bottom + 5:
                    assert not thumbnail[row, column].any()
            if there:
                checked += 1
                expected = photograph[round(y), round(x)].astype(int)
                assert np.abs(thumbnail[row, column] - expected).max() <= 2
    assert checked > 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(prepare("synthetic", tmp_path_factory.mktemp("made"), 64))


@pytest.mark.parametrize("read", [train_batches, eval_batches])
def test_batches_give_the_positions_of_their_tiles(dataset, read):
    """Larger tiles are cropped, and the FOV circle moves with the crop."""
    names = {"split": "train"}
    batch = next(read(dataset, size=48, seed=0, batch_size=8, context=True, **names))
    source = dataset.source("train")
    examples = {e.text("tile_id"): e for e in read_examples(source, range(len(source)))}
    paths = {row.photograph: row for row in dataset.photographs()}
    for image, thumbnail, circle, tile in zip(
        batch["image"], batch["thumbnail"], batch["fov_circle"], batch["tile_id"], strict=True
    ):
        row = paths[examples[tile].text("photograph")]
        photograph = read_image(row.path)
        photograph[~row.fov.mask(*photograph.shape[:2])] = 0
        y, x = round(row.fov_y - circle[0]), round(row.fov_x - circle[1])
        np.testing.assert_array_equal(photograph[y : y + 48, x : x + 48], image)
        assert circle[2] == row.fov_radius
        np.testing.assert_array_equal(thumbnail, make_thumbnail(photograph, row.fov))


def test_context_does_not_change_the_images(dataset):
    arguments = {"size": 48, "seed": 3, "batch_size": 4}
    plain = next(train_batches(dataset, **arguments))
    assert sorted(plain) == ["image", "tile_id"]
    np.testing.assert_array_equal(
        plain["image"], next(train_batches(dataset, **arguments, context=True))["image"]
    )


def test_padding_of_the_last_batch_has_a_circle(dataset):
    count = dataset.counts["val"]
    batch = next(eval_batches(dataset, "val", size=64, seed=0, batch_size=count + 3, context=True))
    assert (
        batch["thumbnail"].shape == (count + 3, THUMBNAIL, THUMBNAIL, 3)
        and not batch["thumbnail"][count:].any()
    )
    np.testing.assert_array_equal(batch["fov_circle"][count:], [[0, 0, 1]] * 3)


def test_tiles_of_an_earlier_version_get_thumbnails(dataset, tmp_path):
    photographs = tmp_path / "photographs" / "a"
    photographs.mkdir(parents=True)
    for row in dataset.photographs()[:3]:
        shutil.copy(row.path, photographs)
    arguments = {"tile": 64, "stride": 64, "patients_unknown": True, "val": 0.3, "test": 0.3}
    out = tmp_path / "tiles"
    make_tiles(tmp_path / "photographs", out, **arguments, workers=1, progress=False)
    thumbnails = (out / THUMBNAILS).read_bytes()
    (out / THUMBNAILS).unlink()
    for path in (out / ".finished").rglob("*.npy"):
        path.unlink()
    tile = next(out.rglob("*_y*.png"))
    modified = tile.stat().st_mtime_ns
    make_tiles(tmp_path / "photographs", out, **arguments, workers=1, progress=False)
    assert (out / THUMBNAILS).read_bytes() == thumbnails and tile.stat().st_mtime_ns == modified


def test_damaged_thumbnails_are_refused(tmp_path):
    write_thumbnail(tmp_path / "a.npy", np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8))
    pack_thumbnails(tmp_path / THUMBNAILS, [tmp_path / "a.npy"] * 2, 2)
    assert open_thumbnails(tmp_path / THUMBNAILS, 2).shape == (2, THUMBNAIL, THUMBNAIL, 3)
    with pytest.raises(DataError, match="expected thumbnails of 3 photographs"):
        open_thumbnails(tmp_path / THUMBNAILS, 3)
    write_thumbnail(tmp_path / "a.npy", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"expected uint8 \[64, 64, 3\]"):
        pack_thumbnails(tmp_path / THUMBNAILS, [tmp_path / "a.npy"], 1)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        pack_thumbnails(tmp_path / THUMBNAILS, [tmp_path / "a.npy"], 1)
    (tmp_path / THUMBNAILS).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        open_thumbnails(tmp_path / THUMBNAILS, 2)
