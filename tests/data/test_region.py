"""Whole images or masks instead of a FOV circle, and photographs that fail."""

import csv

import cv2
import numpy as np
import pytest

from vae.data.errors import DataError, UsageError
from vae.data.fov import UNKNOWN
from vae.data.images import read_image, write_image
from vae.data.inputs import open_inputs
from vae.data.manifest import read_manifest, read_photographs
from vae.data.region import FovChoice, find_region
from vae.data.synthetic import fundus_photograph
from vae.data.tiling import make_tiles

SIZE = 400
HOW = {"tile": 64, "stride": 64, "workers": 1, "progress": False, "val": 0, "test": 0}


@pytest.fixture
def crop():
    """The centre of a photograph, lit to every border."""
    return fundus_photograph(3, 700)[150:550, 150:550]


def saved_mask(folder, name, mask):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_image(folder / name, np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))


def test_whole_images_are_tiled_to_their_borders(crop, tmp_path):
    write_image(tmp_path / "eyes/crops/a.png", crop)
    with pytest.raises(DataError, match=r"no field of view found.*--fov none takes the whole"):
        make_tiles(tmp_path / "eyes", tmp_path / "auto", **HOW)
    make_tiles(tmp_path / "eyes", tmp_path / "tiles", fov="none", **HOW)
    rows = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    # Six tiles of 64 pixels fit into 400 pixels.
    assert len(rows) == 36
    assert {row.fov for row in rows} == {UNKNOWN} and {row.fov_share for row in rows} == {1.0}
    (photograph,) = read_photographs(tmp_path / "tiles/photographs.csv")
    assert photograph.lost_share == -1 and not photograph.masked
    for row in rows:
        tile = read_image(tmp_path / "tiles" / row.tile)
        np.testing.assert_array_equal(tile, crop[row.y : row.y + 64, row.x : row.x + 64])


@pytest.mark.parametrize("name", ["crops/a.png", "a.png", "a_mask.tif", "crops/a_mask.PNG"])
def test_masks_are_found_by_path_or_name(crop, tmp_path, name):
    write_image(tmp_path / "eyes/crops/a.png", crop)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[40:360, 60:200] = True
    saved_mask(tmp_path / "masks", "mask.png", mask)
    (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.imread(str(tmp_path / "masks/mask.png"))
    (tmp_path / "masks/mask.png").unlink()
    suffix = name[name.rindex(".") :].lower()
    (tmp_path / "masks" / name).write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    choice = FovChoice(fov_mask=str(tmp_path / "masks"))
    region = find_region(crop, "a.png", "crops/a", choice)
    np.testing.assert_array_equal(region.inside(SIZE, SIZE), mask)
    assert region.fov == UNKNOWN and region.lost_share == pytest.approx(1 - mask.mean(), abs=0.02)


def test_tiles_are_black_outside_the_mask(crop, tmp_path):
    write_image(tmp_path / "eyes/crops/a.png", crop)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[40:360, 60:200] = True
    saved_mask(tmp_path / "masks", "a.png", mask)
    make_tiles(
        tmp_path / "eyes", tmp_path / "tiles", fov_mask=tmp_path / "masks", min_fov=0.7, **HOW
    )
    rows = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    assert len(rows) == 10  # two columns of five
    masked = np.where(mask[..., None], crop, 0)
    for row in rows:
        window = np.s_[row.y : row.y + 64, row.x : row.x + 64]
        np.testing.assert_array_equal(read_image(tmp_path / "tiles" / row.tile), masked[window])
        assert row.fov_share == mask[window].mean()
    (photograph,) = read_photographs(tmp_path / "tiles/photographs.csv")
    assert photograph.masked and photograph.lost_share > 0.5


def test_a_round_mask_gives_a_circle(tmp_path):
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = np.hypot(x - 200, y - 190) <= 150
    saved_mask(tmp_path / "masks", "a.png", mask)
    choice = FovChoice(fov_mask=str(tmp_path / "masks"))
    region = find_region(np.full((SIZE, SIZE, 3), 90, np.uint8), "a.png", "a", choice)
    assert region.fov.radius == pytest.approx(150, abs=1)
    np.testing.assert_array_equal(region.inside(SIZE, SIZE), mask)


def test_a_round_mask_with_a_hole_gives_no_circle(tmp_path):
    """If it counted as a disc, reports would show pixels that the mask hides."""
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = np.hypot(x - 200, y - 190) <= 150
    mask[180:200, 150:300] = False
    saved_mask(tmp_path / "masks", "a.png", mask)
    write_image(tmp_path / "eyes/eyes/a.png", np.full((SIZE, SIZE, 3), 90, np.uint8))
    make_tiles(
        tmp_path / "eyes", tmp_path / "tiles", fov_mask=tmp_path / "masks", min_fov=0.5, **HOW
    )
    (photograph,) = read_photographs(tmp_path / "tiles/photographs.csv")
    assert photograph.masked and photograph.fov == UNKNOWN


def test_inputs_use_the_chosen_region(crop, tmp_path):
    write_image(tmp_path / "eyes/a.png", crop)
    write_image(tmp_path / "eyes/b.png", fundus_photograph(1, SIZE))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, :200] = True
    saved_mask(tmp_path / "masks", "b.png", mask)
    whole = list(open_inputs([tmp_path / "eyes"], choice=FovChoice(fov="none")).read())
    assert [item.field for item in whole] == ["given", "given"]
    assert all(item.mask().all() and (item.inside() == item.image).all() for item in whole)
    given = open_inputs([tmp_path / "eyes"], choice=FovChoice(fov_mask=str(tmp_path / "masks")))
    missing, masked = given.read()
    assert f"no mask in {tmp_path / 'masks'}; expected a.png" in missing.reason
    np.testing.assert_array_equal(masked.mask(), mask)
    assert not masked.inside()[:, 200:].any()


def test_photographs_without_a_disc_are_refused_and_tiles_are_not(crop, tmp_path):
    """Otherwise a burned-in caption would stay visible."""
    square = np.zeros((SIZE, SIZE, 3), np.uint8)
    square[60:340, 60:340] = 150
    write_image(tmp_path / "crop.png", crop)
    write_image(tmp_path / "square.png", square)
    tile, refused = open_inputs([tmp_path]).read()
    assert tile.field == "lit region"
    assert "square.png: no field of view found" in refused.reason


def test_wrong_choices_and_masks_are_named(crop, tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(UsageError, match="fov 'round': expected one of auto, none"):
        FovChoice(fov="round")
    with pytest.raises(UsageError, match=r"max_lost_share 2\.0"):
        FovChoice(max_lost_share=2.0)
    with pytest.raises(UsageError, match="gone: no such folder"):
        FovChoice(fov_mask=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="choose one"):
        FovChoice(fov="none", fov_mask=str(tmp_path / "masks"))
    choice = FovChoice(fov_mask=str(tmp_path / "masks"))
    saved_mask(tmp_path / "masks", "a.png", np.ones((20, 30), bool))
    with pytest.raises(DataError, match=r"mask has 30 x 20 pixels and eye\.png 400 x 400"):
        find_region(crop, "eye.png", "a", choice)
    saved_mask(tmp_path / "masks", "a.png", np.zeros((SIZE, SIZE), bool))
    with pytest.raises(DataError, match="black everywhere"):
        find_region(crop, "eye.png", "a", choice)


def test_stretched_photographs_are_listed_and_the_limit_is_an_option(tmp_path):
    photograph = fundus_photograph(2, SIZE)
    write_image(tmp_path / "eyes/x/round.png", photograph)
    wide = cv2.resize(photograph, None, fx=1.05, fy=1, interpolation=cv2.INTER_AREA)
    write_image(tmp_path / "eyes/x/wide.png", wide)
    summary = make_tiles(tmp_path / "eyes", tmp_path / "tiles", **HOW)
    (failure,) = summary.rejected
    assert failure.item_id == "x/wide" and "stretched" in failure.reason
    with open(tmp_path / "tiles/rejected.csv", encoding="utf-8", newline="") as file:
        assert [row["item"] for row in csv.DictReader(file)] == ["x/wide"]
    (row,) = read_photographs(tmp_path / "tiles/photographs.csv")
    assert 0 <= row.lost_share < 0.01
    summary = make_tiles(tmp_path / "eyes", tmp_path / "all", max_lost_share=1.0, **HOW)
    assert not summary.rejected
    lost = {
        row.photograph: row.lost_share for row in read_photographs(tmp_path / "all/photographs.csv")
    }
    assert lost["x/wide"] > 0.05 > lost["x/round"]
