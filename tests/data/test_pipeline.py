"""Batches: a function of (seed, step) on any number of processes; evaluation reads tiles once."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vae.data import manifest, pipeline, record_files, records
from vae.data.errors import DataError, UsageError
from vae.data.fundus_tiles import VERSION
from vae.data.fundus_tiles.build import build
from vae.data.images import encode_image

ROOT = Path(__file__).parents[2]
# Hides tensorflow. tfds checks `"tensorflow" in sys.modules`, so an entry None would not do.
WITHOUT_TENSORFLOW = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *args: (
    None if name.split(".")[0] == "tensorflow" else find(name, *args)
)
"""
SIDE = 40
COUNTS = {"train": 23, "val": 5, "test": 6}


def _tile(number: int) -> np.ndarray:
    """Returns uint8 [SIDE, SIDE, 3], lit in the centre, with different pixels for each number."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[4:-4, 4:-4] = np.random.default_rng(number).integers(60, 200, (SIDE - 8, SIDE - 8, 3))
    image[..., 2] += np.arange(SIDE, dtype=np.uint8)  # Encodes the position of a crop.
    image[..., 0] += np.arange(SIDE, dtype=np.uint8)[:, None]
    return image


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A tree of tiles with a manifest; every other photograph has a known FOV circle."""
    root = tmp_path_factory.mktemp("tiles")
    rows, number = [], 0
    for split, count in COUNTS.items():
        for _ in range(count):
            photograph = f"hrf/p{number // 4}{split}"
            path = f"{photograph}/é_{number}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(encode_image(_tile(number), ".png"))
            known = number % 2 == 0
            circle = (100.0, 90.0, 80.0, 10.0, 170.0, 20.0, 180.0) if known else (-1.0,) * 7
            rows.append(
                manifest.TileRow(
                    path, photograph, f"patient{number // 4}{split}", "hrf", split, 20, 30, 0.5,
                    200, 210, *circle, 0.9,
                )
            )  # fmt: skip
            number += 1
    manifest.write_manifest(root / manifest.MANIFEST, rows)
    return root


@pytest.fixture(scope="module")
def data_dir(tiles, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    build(tiles, directory, shard_bytes=20_000, report=lambda line: None)
    return directory


@pytest.fixture
def dataset(data_dir):
    return pipeline.open_dataset(data_dir)


@pytest.fixture
def own_copy(data_dir, tmp_path):
    """A copy that may be damaged, and the directory of its shards."""
    shutil.copytree(data_dir, tmp_path / "data")
    return tmp_path / "data" / "fundus_tiles" / VERSION


def _take(batches, count: int) -> list[dict]:
    return [next(batches) for _ in range(count)]


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_opens_and_counts(dataset, data_dir):
    assert dataset.counts == COUNTS
    assert len(dataset.shards["train"]) > 1
    assert dataset.patients_known
    assert dataset.photographs() == []
    assert pipeline.open_dataset(dataset.path).fingerprint == dataset.fingerprint
    assert set(dataset.fingerprint) <= set("0123456789abcdef")


def test_tiles_equal_the_built_ones(dataset):
    batch = next(pipeline.train_batches(dataset, size=SIDE, seed=0, batch_size=23))
    assert batch["image"].shape == (23, SIDE, SIDE, 3)
    assert batch["image"].dtype == np.uint8
    for image, tile_id in zip(batch["image"], batch["tile_id"], strict=True):
        assert np.array_equal(image, _tile(int(tile_id.split("_")[1])))


@pytest.mark.parametrize("hosts", [2, 4])
def test_rows_of_all_processes_are_the_batch_of_one_process(dataset, hosts):
    def batches(rows):
        return _take(
            pipeline.train_batches(dataset, size=32, seed=3, batch_size=8, rows=rows, threads=2), 9
        )

    whole = batches(None)
    # Devices of a process need not be adjacent, so its rows can be any.
    for positions in (np.arange(8).reshape(hosts, -1), np.arange(8).reshape(-1, hosts).T):
        parts = [batches(rows) for rows in positions]
        for k, batch in enumerate(whole):
            for key in batch:
                for rows, part in zip(positions, parts, strict=True):
                    assert np.array_equal(batch[key][rows], part[k][key])


@pytest.mark.parametrize("rows", [(-1, 3), (4, 8), ()])
def test_rows_outside_the_batch_are_refused(dataset, rows):
    with pytest.raises(UsageError, match="rows of a batch of 8"):
        pipeline.train_batches(dataset, size=32, seed=0, batch_size=8, rows=rows)


def test_start_step_continues_exactly(dataset):
    options = {"size": 32, "seed": 5, "batch_size": 6}
    whole = _take(pipeline.train_batches(dataset, **options), 12)
    rest = _take(pipeline.train_batches(dataset, **options, start_step=7), 5)
    assert all(_same(a, b) for a, b in zip(whole[7:], rest, strict=True))


def test_every_epoch_has_all_tiles_in_another_order(dataset):
    batches = pipeline.train_batches(dataset, size=SIDE, seed=0, batch_size=1)
    epochs = [[next(batches)["tile_id"][0] for _ in range(23)] for _ in range(3)]
    assert all(Counter(epoch) == Counter(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 23
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_is_the_same_in_every_version(dataset):
    """A run that continues after an upgrade must get the same order."""
    batch = next(pipeline.train_batches(dataset, size=SIDE, seed=0, batch_size=6))
    assert [int(tile_id.split("_")[1]) for tile_id in batch["tile_id"]] == [10, 14, 4, 22, 7, 15]


def test_seeds_share_no_epoch(dataset):
    orders = set()
    for seed in range(4):
        batches = pipeline.train_batches(dataset, size=SIDE, seed=seed, batch_size=23)
        orders |= {tuple(next(batches)["tile_id"]) for _ in range(3)}
    assert len(orders) == 12


def test_crops_of_larger_tiles_cover_all_positions(dataset):
    batches = pipeline.train_batches(dataset, size=16, seed=0, batch_size=23)
    origins = set()
    for batch in _take(batches, 8):
        for image, tile_id in zip(batch["image"], batch["tile_id"], strict=True):
            tile = _tile(int(tile_id.split("_")[1]))
            windows = np.lib.stride_tricks.sliding_window_view(tile, (16, 16, 3))[..., 0, :, :, :]
            found = np.argwhere((windows == image).all(axis=(2, 3, 4)))
            assert len(found) == 1
            origins.add(tuple(found[0]))
    ys, xs = np.array(sorted(origins)).T
    assert ys.min() == xs.min() == 0
    assert ys.max() == xs.max() == SIDE - 16
    assert len(set(ys % 8)) == len(set(xs % 8)) == 8


def test_smaller_tiles_are_refused_before_the_first_batch(dataset):
    with pytest.raises(DataError, match=r"tile hrf/p\d.*/é_\d+ is 40x40 .* 64x64"):
        pipeline.train_batches(dataset, size=64, seed=0, batch_size=8)
    with pytest.raises(DataError, match="40x40"):
        pipeline.eval_batches(dataset, "val", size=64, seed=0, batch_size=8)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_tile_once(dataset, hosts):
    local = 4 // hosts
    seen = []
    for start in range(0, 4, local):
        batches = list(
            pipeline.eval_batches(
                dataset, "test", size=SIDE, seed=0, batch_size=4, rows=range(start, start + local)
            )
        )
        # The same on every process: otherwise the others would wait forever.
        assert len(batches) == 2
        for batch in batches:
            assert batch["image"].shape == (local, SIDE, SIDE, 3)
            assert batch["fov"].shape == (local, SIDE, SIDE)
            seen += batch["tile_id"][batch["valid"]].tolist()
            assert (batch["tile_id"][~batch["valid"]] == "").all()
            assert not batch["image"][~batch["valid"]].any()
            assert not batch["fov"][~batch["valid"]].any()
    assert len(seen) == len(set(seen)) == COUNTS["test"]


def test_evaluation_batches_have_names_and_masks(dataset):
    for batch in pipeline.eval_batches(dataset, "val", size=SIDE, seed=0, batch_size=5):
        for row, tile_id in enumerate(batch["tile_id"]):
            number = int(tile_id.split("_")[1])
            assert batch["photograph"][row] == f"hrf/p{number // 4}val"
            assert batch["patient"][row] == f"patient{number // 4}val"
            assert batch["label"][row] == "hrf"
            y, x = np.mgrid[20 : 20 + SIDE, 30 : 30 + SIDE]
            inside = (x - 100) ** 2 + (y - 90) ** 2 <= 80**2
            if number % 2:  # Unknown circle: the mask is the lit region.
                inside = np.zeros((SIDE, SIDE), bool)
                inside[4:-4, 4:-4] = True
                assert (batch["fov"][row] >= inside).all()
            else:
                assert np.array_equal(batch["fov"][row], inside)


def test_evaluation_crops_are_reproducible_and_crop_the_mask_too(dataset):
    first, second = (
        next(pipeline.eval_batches(dataset, "val", size=16, seed=seed, batch_size=5))
        for seed in (0, 1)
    )
    assert _same(first, second)
    for row, tile_id in enumerate(first["tile_id"]):
        number = int(tile_id.split("_")[1])
        windows = np.lib.stride_tricks.sliding_window_view(_tile(number), (16, 16, 3))
        ((y, x),) = np.argwhere((windows[:, :, 0] == first["image"][row]).all(axis=(2, 3, 4)))
        if number % 2 == 0:
            ys, xs = np.mgrid[20 + y : 36 + y, 30 + x : 46 + x]
            inside = (xs - 100) ** 2 + (ys - 90) ** 2 <= 80**2
            assert np.array_equal(first["fov"][row], inside)


def test_limit_takes_a_sample_by_the_seed(dataset):
    def sample(seed):
        batches = pipeline.eval_batches(
            dataset, "train", size=SIDE, seed=seed, batch_size=4, limit=10
        )
        return [tile for batch in batches for tile in batch["tile_id"][batch["valid"]]]

    assert len(set(sample(0))) == 10
    assert sample(0) == sample(0) != sample(1)


@pytest.mark.parametrize(("count", "expected"), [(10, [4, 4, 2]), (1024, [4] * 5 + [3])])
def test_first_tiles_are_the_first_of_the_training(dataset, count, expected):
    tiles = list(pipeline.first_tiles(dataset, size=32, seed=9, count=count, batch_size=4))
    assert [len(part) for part in tiles] == expected
    train = pipeline.train_batches(dataset, size=32, seed=9, batch_size=sum(expected))
    assert np.array_equal(np.concatenate(tiles), next(train)["image"])


def test_both_formats_give_the_same_batches(tiles, dataset, tmp_path):
    build(tiles, tmp_path, file_format="array_record", report=lambda line: None)
    other = pipeline.open_dataset(tmp_path)
    assert other.file_format == "array_record"
    assert other.fingerprint == dataset.fingerprint
    options = {"size": 32, "seed": 0, "batch_size": 8}
    for a, b in zip(
        _take(pipeline.train_batches(dataset, **options), 4),
        _take(pipeline.train_batches(other, **options), 4),
        strict=True,
    ):
        assert _same(a, b)
    for a, b in zip(
        pipeline.eval_batches(dataset, "val", **options),
        pipeline.eval_batches(other, "val", **options),
        strict=True,
    ):
        assert _same(a, b)


def test_fingerprint_follows_the_data(dataset, own_copy, tmp_path, monkeypatch, reseal):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert pipeline.open_dataset(own_copy).fingerprint == dataset.fingerprint
    shutil.rmtree(own_copy / "index")
    assert pipeline.open_dataset(own_copy).fingerprint == dataset.fingerprint
    shard, count = pipeline.open_dataset(own_copy).shards["val"][0]
    payloads = [records.TFRecordSource([shard])[n] for n in range(count)]
    payloads[0] = payloads[0].replace(b"hrf", b"HRF")
    record_files.write_tfrecords(shard, payloads)
    with pytest.raises(DataError, match=f"{shard.name}: holds {count} other records than"):
        _ = pipeline.open_dataset(own_copy).fingerprint
    reseal(own_copy)
    assert pipeline.open_dataset(own_copy).fingerprint != dataset.fingerprint


def test_bad_record_stops_the_run_naming_it(own_copy):
    dataset = pipeline.open_dataset(own_copy)
    shard, _ = dataset.shards["train"][0]
    content = bytearray(shard.read_bytes())
    content[500] ^= 1  # A byte inside the image of record 0.
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _take(pipeline.train_batches(dataset, size=SIDE, seed=0, batch_size=23), 1)
    for part in (shard.name, "record 0", "tile hrf/p", "photograph hrf/p"):
        assert part in str(caught.value)


def test_record_that_holds_no_image_stops_the_run_naming_it(own_copy, reseal):
    dataset = pipeline.open_dataset(own_copy)
    shard, count = dataset.shards["train"][0]
    payloads = [records.TFRecordSource([shard])[n] for n in range(count)]
    payloads[0] = payloads[0].replace(b"\x89PNG", b"none")
    record_files.write_tfrecords(shard, payloads)
    records.write_index(shard)
    reseal(own_copy)
    dataset = pipeline.open_dataset(own_copy)
    with pytest.raises(DataError, match=r"record 0 .*tile hrf/p.*holds no image"):
        _take(pipeline.train_batches(dataset, size=SIDE, seed=0, batch_size=23), 1)


def test_swapped_shards_are_refused_with_and_without_their_indexes(own_copy):
    val, test = (next(own_copy.glob(f"*-{split}.*")) for split in ("val", "test"))
    for folder in (own_copy, own_copy / "index"):
        names = [next(folder.glob(f"{path.name}*")).name for path in (val, test)]
        (folder / names[0]).rename(folder / "spare")
        (folder / names[1]).rename(folder / names[0])
        (folder / "spare").rename(folder / names[1])
        with pytest.raises(DataError, match=f"{val.name}: holds .* records"):
            pipeline.open_dataset(own_copy).source("val")


def test_an_index_of_other_records_is_made_anew(own_copy, dataset):
    for path in (own_copy / "index").iterdir():
        index = np.load(path)
        index["crc"] += 1
        np.save(path, index)
    assert pipeline.open_dataset(own_copy).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("name", ["photographs.csv", "thumbnails.npy"])
def test_a_changed_file_beside_the_shards_is_refused(tiny_data, tmp_path, name):
    shutil.copytree(tiny_data, tmp_path / "data")
    (path,) = (tmp_path / "data").rglob(name)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    dataset = pipeline.open_dataset(tmp_path / "data")
    with pytest.raises(DataError, match=rf"{name}: damaged \(its SHA-256"):
        dataset.thumbnails()


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"crc": NaN}', '{"crc": 1e999}', "[]", "{}"])
def test_hostile_descriptions_are_one_line(own_copy, name, content):
    (own_copy / name).write_text(content)
    with pytest.raises(DataError, match=name if content != "{}" else "version|tiles") as refusal:
        pipeline.open_dataset(own_copy)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_missing_shard_is_named(own_copy):
    shard = next(own_copy.glob("*train*00001*"))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: missing"):
        pipeline.open_dataset(own_copy)


def test_other_version_is_refused_naming_both(own_copy, tmp_path):
    info = json.loads((own_copy / "dataset_info.json").read_text())
    (own_copy / "dataset_info.json").write_text(json.dumps(info | {"version": "0.9.0"}))
    with pytest.raises(DataError, match=rf"0\.9\.0 .*{VERSION}"):
        pipeline.open_dataset(tmp_path / "data")
    own_copy.rename(own_copy.with_name("0.9.0"))
    with pytest.raises(DataError, match=rf"0\.9\.0 .*{VERSION}"):
        pipeline.open_dataset(tmp_path / "data")


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json"])
def test_unreadable_description_is_refused(own_copy, name):
    (own_copy / name).write_text("{")
    with pytest.raises(DataError, match=f"{name}: damaged"):
        pipeline.open_dataset(own_copy)


def test_missing_dataset_is_reported_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match="fundus-vae build --tiles"):
        pipeline.open_dataset(tmp_path)


def test_unknown_split_is_reported_with_the_known_ones(dataset):
    with pytest.raises(UsageError, match="'valid'; it has train, val, test"):
        pipeline.train_batches(dataset, size=32, seed=0, batch_size=4, split="valid")


def test_reading_needs_no_tensorflow(data_dir):
    program = (
        f"{WITHOUT_TENSORFLOW}"
        "from vae.data import pipeline\n"
        f"dataset = pipeline.open_dataset({str(data_dir)!r})\n"
        "batch = next(pipeline.train_batches(dataset, size=32, seed=0, batch_size=4))\n"
        "assert batch['image'].shape == (4, 32, 32, 3)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
