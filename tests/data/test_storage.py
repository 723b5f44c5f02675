"""Datasets in a bucket: the same batches as on disk; reads only the bytes of a record."""

import importlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from buckets import FolderBucket, GoogleBucket

from vae.data import pipeline, records, storage
from vae.data.errors import DataError, UsageError
from vae.data.fundus_tiles import NAME
from vae.data.fundus_tiles import VERSION as BUILT
from vae.data.fundus_tiles.build import build
from vae.data.inputs import open_inputs

ROOT = Path(__file__).parents[2]
URL = "gs://eyes/set"
VERSION = f"{NAME}/{BUILT}"
REGISTRY = importlib.import_module("fsspec.registry")._registry  # File systems by scheme.


@pytest.fixture
def bucket(tiny_data, tmp_path, monkeypatch):
    """Serves the tiny dataset at `URL`; returns the folder of its shards."""
    shutil.copytree(tiny_data, tmp_path / "buckets" / "eyes" / "set")
    monkeypatch.setattr(FolderBucket, "root", tmp_path / "buckets")
    monkeypatch.setattr(FolderBucket, "requests", [], raising=False)
    monkeypatch.setitem(REGISTRY, "gs", FolderBucket)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    FolderBucket.clear_instance_cache()
    yield tmp_path / "buckets" / "eyes" / "set" / VERSION
    FolderBucket.clear_instance_cache()


def _requests(*kinds: str) -> list[tuple[str, int]]:
    """Returns (path, bytes) of requests for shards of these kinds since the last call."""
    found = [(path, n) for what, path, n in FolderBucket.requests if what in kinds]
    FolderBucket.requests.clear()
    return [(path, n) for path, n in found if "tfrecord" in path and "index" not in path]


def test_local_paths_and_urls_are_distinguished(tmp_path):
    assert storage.as_path(tmp_path / "x") == tmp_path / "x"
    assert os.fspath(storage.as_path(URL) / "a" / "b") == "gs://eyes/set/a/b"
    with pytest.raises(UsageError, match=r"http://eyes/set: expected a local path, or .*gs://"):
        pipeline.open_dataset("http://eyes/set")


def test_batches_equal_those_of_the_same_dataset_on_disk(bucket, tiny_data):
    here, there = pipeline.open_dataset(tiny_data), pipeline.open_dataset(URL)
    assert there.counts == here.counts
    assert there.fingerprint == here.fingerprint
    assert there.photographs() == here.photographs() != []
    options = {"size": 32, "seed": 1, "batch_size": 8}
    for batches in (
        lambda dataset: pipeline.train_batches(dataset, **options),
        lambda dataset: pipeline.eval_batches(dataset, "val", **options),
    ):
        for _, first, second in zip(range(5), batches(here), batches(there), strict=False):
            assert first.keys() == second.keys()
            assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_record_takes_one_request_for_its_bytes(bucket):
    source = pipeline.open_dataset(URL).source("train")
    assert not _requests("read", "open")  # The index gives their positions.
    source[3]
    assert [count for _, count in _requests("read", "open")] == [source.index["length"][3]]
    numbers = [5, 0, len(source) - 1]
    assert list(source.read_many(numbers)) == [source[n] for n in numbers]
    assert sorted(count for _, count in _requests("read", "open")) == sorted(
        2 * [int(n) for n in source.index["length"][numbers]]
    )
    assert pickle.loads(pickle.dumps(source))[3] == source[3]
    assert list(source.read_many([])) == []


def test_opening_takes_few_requests(bucket):
    dataset = pipeline.open_dataset(URL)
    opening = len(FolderBucket.requests)
    assert opening < 10
    shards = [file for files in dataset.shards.values() for file, _ in files]
    assert dataset.fingerprint
    assert len(FolderBucket.requests) - opening == 2 * len(shards)  # size and index of each


def test_missing_index_is_stored_in_the_users_cache(bucket, tiny_data, tmp_path):
    shutil.rmtree(bucket / "index")
    before = sorted(path.name for path in bucket.iterdir())
    first = pipeline.open_dataset(URL).fingerprint
    assert first == pipeline.open_dataset(tiny_data).fingerprint
    assert len(_requests("open")) == len(list((tmp_path / "cache").rglob("*.npy"))) > 0
    assert sorted(path.name for path in bucket.iterdir()) == before
    assert pipeline.open_dataset(URL).fingerprint == first
    assert not _requests("open")


def test_damage_names_the_shard_in_the_bucket(bucket):
    dataset = pipeline.open_dataset(URL)
    shard = bucket / dataset.shards["train"][0][0].name
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)
    source = dataset.source("train")
    with pytest.raises(DataError, match=rf"{URL}/{VERSION}/{shard.name}: record 0 .*checksum"):
        source[0]
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: record 1: FileNotFoundError"):
        source[1]
    with pytest.raises(DataError, match=rf"gs://.*{shard.name}: missing"):
        pipeline.open_dataset(URL)
    with pytest.raises(DataError, match=r"gs://eyes/none: no dataset here"):
        pipeline.open_dataset("gs://eyes/none")


def test_other_version_is_named(bucket):
    bucket.rename(bucket.with_name("0.9.0"))
    with pytest.raises(DataError, match=r"gs://eyes/set holds version 0\.9\.0"):
        pipeline.open_dataset(URL)


def test_bucket_that_fails_is_one_line(bucket, monkeypatch):
    def refuse(self, path, **kwargs):
        raise RuntimeError("403, forbidden")

    monkeypatch.setattr(FolderBucket, "ls", refuse)
    with pytest.raises(DataError, match="gs://eyes/set: RuntimeError: 403, forbidden"):
        pipeline.open_dataset(URL)


def test_array_records_need_a_local_copy(bucket, tiny_tiles, tmp_path):
    folder = tmp_path / "buckets" / "eyes" / "arrays"
    build(tiny_tiles, folder, file_format="array_record", report=lambda line: None)
    with pytest.raises(UsageError, match="data.cache_dir=DIR, or build with"):
        pipeline.open_dataset("gs://eyes/arrays").source("val")
    copied = pipeline.open_dataset(
        "gs://eyes/arrays", cache_dir=tmp_path / "copy", report=lambda line: None
    )
    assert len(copied.source("val")) == copied.counts["val"]


def test_inputs_may_be_a_dataset_in_a_bucket(bucket, tiny_data):
    here, there = (list(open_inputs([path], split="val").read()) for path in (tiny_data, URL))
    assert [item.item_id for item in there] == [item.item_id for item in here]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(here, there, strict=True))


def test_tiles_may_be_in_a_bucket(bucket, tiny_data, tiny_tiles, tmp_path):
    shutil.copytree(tiny_tiles, FolderBucket.root / "eyes" / "tiles")
    build("gs://eyes/tiles", tmp_path / "built", report=lambda line: None)
    here, there = (pipeline.open_dataset(path) for path in (tiny_data, tmp_path / "built"))
    assert there.fingerprint == here.fingerprint
    assert there.metadata == here.metadata
    assert there.photographs() == here.photographs()
    options = {"patient_regex": "/([^_]+)", "report": lambda line: None}
    for root in (FolderBucket.root / "eyes" / "tiles", "gs://eyes/tiles"):
        (FolderBucket.root / "eyes" / "tiles" / "manifest.csv").unlink(missing_ok=True)
        build(root, tmp_path / f"tree{'://' in str(root)}", **options)
    first, second = (pipeline.open_dataset(tmp_path / f"tree{x}") for x in (False, True))
    assert first.fingerprint == second.fingerprint
    with pytest.raises(DataError, match="gs://eyes/none: no such directory"):
        build("gs://eyes/none", tmp_path / "x", report=lambda line: None)
    with pytest.raises(UsageError, match="gs://eyes/out: shards are written to a disk"):
        build(tiny_tiles, "gs://eyes/out", report=lambda line: None)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(REGISTRY, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"pip install 'fundus-vae\[gcs\]'"):
        pipeline.open_dataset(URL)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="no gcsfs")
def test_gcsfs_reads_it_from_a_server(bucket, tiny_data, tmp_path):
    """Uses gcsfs over HTTP without tensorflow, in a subprocess because gcsfs keeps threads."""
    program = (
        "import sys\n"
        "from vae.data import pipeline\n"
        "options = {'size': 32, 'seed': 0, 'batch_size': 6}\n"
        "here = next(pipeline.train_batches(pipeline.open_dataset(sys.argv[1]), **options))\n"
        "dataset = pipeline.open_dataset(sys.argv[2])\n"
        "there = next(pipeline.train_batches(dataset, **options, threads=2, prefetch=1))\n"
        "assert all((here[key] == there[key]).all() for key in here)\n"
        "copy = pipeline.open_dataset(sys.argv[2], cache_dir=sys.argv[3])\n"
        "assert copy.fingerprint == dataset.fingerprint\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    with GoogleBucket(FolderBucket.root) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, tiny_data, URL, tmp_path / "copy"],
            cwd=ROOT,
            env={**os.environ, "STORAGE_EMULATOR_HOST": server.url},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ranges = [wanted for path, wanted, _ in server.requests if wanted and "tfrecord" in path]
    lengths = set(records.read_index(next(bucket.glob("*train*00000*")))["length"].tolist())
    assert len(ranges) >= 6
    for wanted in ranges[:6]:
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        assert last - first + 1 in lengths
