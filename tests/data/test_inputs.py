"""Files, folders and datasets as one sequence of images."""

import numpy as np
import pytest

from vae.data.errors import DataError, UsageError
from vae.data.failures import Failure
from vae.data.fov import UNKNOWN
from vae.data.images import write_image
from vae.data.inputs import Item, open_inputs
from vae.data.manifest import read_manifest
from vae.data.synthetic import fundus_photograph

NOISE = np.random.default_rng(0).integers(30, 256, (32, 40, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three images and a bad file, in two subfolders."""
    for number, name in enumerate(("a/2.png", "a/10.png", "b/ü 1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, np.roll(NOISE, number, axis=0))
    (tmp_path / "b" / "0.jpg").write_bytes(b"no picture")
    return tmp_path


def test_folder_is_read_in_order_with_failures_in_place(folder):
    inputs = open_inputs([folder], threads=2)
    assert inputs.names() == ["a/10", "a/2", "b/0", "b/ü 1"] and len(inputs) == 4
    items = list(inputs.read())
    assert [item.item_id for item in items] == inputs.names()
    assert [type(item) for item in items] == [Item, Item, Failure, Item]
    assert "0.jpg: is no image" in items[2].reason
    np.testing.assert_array_equal(items[0].image, np.roll(NOISE, 1, axis=0))
    assert items[0].fov == UNKNOWN and items[0].origin == (-1, -1) and items[0].photograph == ""
    assert items[0].path == str(folder / "a" / "10.png")


def test_reading_can_start_anywhere(folder):
    inputs = open_inputs([folder / "a", folder / "b" / "ü 1.png"])
    names = inputs.names()
    assert names == ["10", "2", "ü 1"]
    for start in range(5):
        assert [item.item_id for item in inputs.read(start)] == names[start:]


def test_abandoned_reading_stops_its_threads(folder):
    import threading

    before = threading.active_count()
    reading = open_inputs([folder], threads=3).read()
    next(reading)
    reading.close()
    assert threading.active_count() == before


def test_few_images_are_held_in_memory(folder, monkeypatch):
    from vae.data import inputs

    monkeypatch.setattr(inputs, "_AHEAD_BYTES", 4 * NOISE.nbytes)
    for number in range(40):
        write_image(folder / "a" / f"more{number}.png", NOISE)
    decoded, read_image = [], inputs.read_image
    monkeypatch.setattr(inputs, "read_image", lambda p: decoded.append(p) or read_image(p))
    for taken, _ in enumerate(open_inputs([folder / "a"], threads=1).read(), start=1):
        assert len(decoded) <= taken + 4
    assert taken == len(decoded) == 42


def test_tiles_have_the_metadata_of_their_manifest(tiny_tiles):
    rows = list(read_manifest(tiny_tiles / "manifest.csv"))
    inputs = open_inputs([tiny_tiles])
    assert inputs.names() == [row.tile_id for row in rows]
    item = next(inputs.read())
    assert (item.photograph, item.patient, item.label, item.split) == (
        rows[0].photograph, rows[0].patient, rows[0].label, rows[0].split,
    )  # fmt: skip
    assert item.fov == rows[0].fov and item.origin == (rows[0].y, rows[0].x)
    assert item.mask().mean() == pytest.approx(rows[0].fov_share, abs=1e-6)
    tests = [row.tile_id for row in rows if row.split == "test"]
    assert open_inputs([tiny_tiles], split="test").names() == tests != []


def test_dataset_gives_the_tiles_it_was_built_from(tiny_data, tiny_tiles):
    tiles = {item.item_id: item for item in open_inputs([tiny_tiles]).read()}
    inputs = open_inputs([tiny_data])
    assert sorted(inputs.names()) == sorted(tiles)
    for item, name in zip(inputs.read(), inputs.names(), strict=True):
        tile = tiles[item.item_id]
        assert item.item_id == name
        np.testing.assert_array_equal(item.image, tile.image)
        np.testing.assert_array_equal(item.mask(), tile.mask())
        assert (item.origin, item.photograph, item.patient, item.label, item.split) == (
            tile.origin, tile.photograph, tile.patient, tile.label, tile.split,
        )  # fmt: skip
    split = open_inputs([tiny_data], split="val")
    assert {item.split for item in split.read()} == {"val"}
    assert [item.item_id for item in split.read(3)] == split.names()[3:]


def test_damaged_record_is_a_failure(tiny_data, tmp_path):
    import shutil

    copy = shutil.copytree(tiny_data, tmp_path / "copy")
    shard = next(path for path in copy.rglob("*train.tfrecord*") if path.suffix != ".npy")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    inputs = open_inputs([copy], split="train")
    items = list(inputs.read())
    failures = [item for item in items if isinstance(item, Failure)]
    assert len(failures) == 1 and len(items) == len(inputs)
    assert "does not match its checksum" in failures[0].reason
    assert [item.item_id for item in items] == inputs.names()


def test_field_of_view_of_a_photograph_is_detected(tmp_path):
    image = fundus_photograph(3, 400)
    image[:20, :90] = 250  # a burned-in date
    write_image(tmp_path / "eye.png", image)
    write_image(tmp_path / "tile.png", image[100:300, 100:300])
    write_image(tmp_path / "wide.png", np.tile(NOISE, (14, 12, 1)))
    eye, tile, wide = open_inputs([tmp_path]).read()
    assert eye.fov.radius == pytest.approx(188, abs=3)
    assert eye.origin == (0, 0) and eye.photograph == "eye"
    assert not eye.inside()[:20, :90].any() and eye.image[:20, :90].any()
    np.testing.assert_array_equal(eye.inside()[eye.mask()], image[eye.mask()])
    for other in (tile, wide):
        assert other.fov == UNKNOWN and other.photograph == ""
        assert other.inside() is other.image


def test_shared_ids_are_refused(folder):
    with pytest.raises(DataError, match=r"two images are called '2': .*name a folder that holds"):
        open_inputs([folder / "a" / "2.png", folder / "a"])
    # If two files of a folder differ only in the suffix, their ids include it.
    before = open_inputs([folder]).names()
    write_image(folder / "a" / "2.jpg", NOISE)
    after = set(open_inputs([folder]).names())
    assert "a/2" in before and after == {*before} - {"a/2"} | {"a/2.jpg", "a/2.png"}
    write_image(folder / "a" / "2.jpg.png", NOISE)
    with pytest.raises(DataError, match=r"two images are called 'a/2\.jpg'"):
        open_inputs([folder])


def test_wrong_inputs_are_named(folder, tiny_tiles, tmp_path):
    with pytest.raises(UsageError, match="no input"):
        open_inputs([])
    with pytest.raises(DataError, match="gone: no such file or folder"):
        open_inputs([folder, folder / "gone"])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images; expected files ending in \.jpg"):
        open_inputs([folder / "empty"])
    with pytest.raises(UsageError, match="read from local files"):
        open_inputs(["gs://bucket/tile.png"])
    with pytest.raises(UsageError, match="split 'tset': expected one of train, val, test"):
        open_inputs([tiny_tiles], split="tset")
    with pytest.raises(UsageError, match="has no splits"):
        open_inputs([folder], split="test")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "config.json").touch()
    with pytest.raises(UsageError, match="is a model's workdir"):
        open_inputs([folder / "run"])
    with pytest.raises(UsageError, match="threads 0"):
        open_inputs([folder], threads=0)
