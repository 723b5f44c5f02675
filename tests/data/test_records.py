"""Record files: format, index, and detection of damage."""

import importlib.util
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import record_files, records
from vae.data.errors import DataError

_IN_IMAGE = -100  # Distance from the end of a shard to a byte in the image of its last record.


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Redirects the user's cache to a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _example(number: int) -> bytes:
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["tile_id"].bytes_list.value.append(b"hrf/01_h/%d" % number)
    features["photograph"].bytes_list.value.append(b"hrf/01_h")
    features["image"].bytes_list.value.append(np.random.default_rng(number).bytes(50 + number))
    return example.SerializeToString(deterministic=True)


def _write(directory, counts=(7, 1, 5)) -> tuple[list, list[bytes]]:
    payloads = [_example(number) for number in range(sum(counts))]
    shards, rest = [], iter(payloads)
    for number, count in enumerate(counts):
        shards.append(directory / f"fundus_tiles-train.tfrecord-{number:05d}-of-{len(counts):05d}")
        record_files.write_tfrecords(shards[-1], [next(rest) for _ in range(count)])
    return shards, payloads


def _flip(path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_reads_every_record_by_its_number(tmp_path):
    shards, payloads = _write(tmp_path)
    source = records.TFRecordSource(shards)
    assert len(source) == 13
    order = np.random.default_rng(0).permutation(13)
    assert [source[n] for n in order] == [payloads[n] for n in order]
    assert [source.locate(n)[1] for n in (0, 6, 7, 8)] == [0, 6, 0, 0]
    assert source.locate(8)[0] == shards[2]
    with pytest.raises(IndexError):
        source[13]


def test_is_picklable_and_thread_safe(tmp_path):
    shards, payloads = _write(tmp_path)
    source = pickle.loads(pickle.dumps(records.TFRecordSource(shards)))
    wrong = []

    def read(seed):
        for n in np.random.default_rng(seed).integers(13, size=300):
            if source[n] != payloads[n]:
                wrong.append(n)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_format_matches_tensorflow(tmp_path):
    """Runs in a subprocess, so that tensorflow is not imported into the test process."""
    shards, _ = _write(tmp_path, (3,))
    program = (
        "import sys, tensorflow as tf\n"
        "read = [r.numpy() for r in tf.data.TFRecordDataset(sys.argv[1])]\n"
        "with tf.io.TFRecordWriter(sys.argv[2]) as writer:\n"
        "  [writer.write(r) for r in read]\n"
    )
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("no tensorflow")
    copy = tmp_path / "copy"
    subprocess.run([sys.executable, "-c", program, shards[0], copy], check=True)
    assert copy.read_bytes() == shards[0].read_bytes()


def test_index_is_stored_next_to_the_shard_or_in_the_cache(tmp_path, cache, monkeypatch):
    shards, _ = _write(tmp_path)
    made = records.write_index(shards[0])
    assert (tmp_path / "index" / f"{shards[0].name}.npy").is_file()
    assert [len(_example(n)) for n in range(7)] == made["length"].tolist()

    records.read_index(shards[1])
    assert len(list(cache.rglob("*.npy"))) == 1
    monkeypatch.setattr(records, "scan", lambda shard: pytest.fail("scanned again"))
    records.read_index(shards[0])
    records.read_index(shards[1])


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    shards, _ = _write(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(records.TFRecordSource(shards)) == 13


def test_stale_or_broken_index_is_rebuilt(tmp_path):
    shards, payloads = _write(tmp_path)
    for shard in shards:
        records.write_index(shard)
    record_files.write_tfrecords(shards[0], payloads[:3])
    assert len(records.TFRecordSource(shards)) == 9
    (tmp_path / "index" / f"{shards[1].name}.npy").write_bytes(b"\x93NUMPY broken")
    assert len(records.TFRecordSource(shards)) == 9


@pytest.mark.parametrize("indexed", [False, True])
def test_truncated_shard_names_shard_and_record(tmp_path, indexed):
    shards, _ = _write(tmp_path)
    if indexed:
        records.write_index(shards[0])
    os.truncate(shards[0], shards[0].stat().st_size - 10)
    with pytest.raises(DataError, match=r"00000-of-00003: record 6 .*cut short"):
        records.TFRecordSource(shards)


def test_shard_truncated_between_records_is_detected_by_its_count(tmp_path):
    shards, payloads = _write(tmp_path)
    record_files.write_tfrecords(shards[0], payloads[:6])
    with pytest.raises(DataError, match="holds 6 records, 7 expected"):
        records.TFRecordSource(shards, counts=(7, 1, 5))


def test_missing_shard_is_named(tmp_path):
    shards, _ = _write(tmp_path)
    shards[1].unlink()
    with pytest.raises(DataError, match="00001-of-00003: missing"):
        records.TFRecordSource(shards)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (3, "record 0 has a damaged length"),
        (8, "record 0 has a damaged length"),
        (
            _IN_IMAGE,
            r"record 6 \(tile hrf/01_h/6, photograph hrf/01_h\) does not match its checksum",
        ),
        (-1, "record 6 .*does not match its checksum"),
    ],
)
def test_flipped_byte_is_detected_by_the_index(tmp_path, at, message):
    shards, _ = _write(tmp_path)
    _flip(shards[0], at)
    with pytest.raises(DataError, match=message):
        records.TFRecordSource(shards)


def test_byte_flipped_after_indexing_is_detected_on_reading(tmp_path):
    shards, payloads = _write(tmp_path)
    for shard in shards:
        records.write_index(shard)
    source = records.TFRecordSource(shards)
    blind = records.TFRecordSource(shards, verify=False)
    _flip(shards[0], _IN_IMAGE)
    assert source[5] == payloads[5]
    with pytest.raises(DataError, match=r"00000-of-00003: record 6 .*does not match"):
        source[6]
    assert blind[6] != payloads[6]


def test_shard_truncated_after_opening_is_detected_on_reading(tmp_path):
    shards, _ = _write(tmp_path)
    source = records.TFRecordSource(shards)
    os.truncate(shards[0], shards[0].stat().st_size - 10)
    with pytest.raises(DataError, match=r"record 6 .*cut short"):
        source[6]


def test_array_record_through_the_same_interface(tmp_path):
    from array_record.python import array_record_module

    shards, payloads = [], [_example(number) for number in range(9)]
    for number, part in enumerate((payloads[:4], payloads[4:])):
        shards.append(tmp_path / f"fundus_tiles-train.array_record-{number:05d}-of-00002")
        writer = array_record_module.ArrayRecordWriter(str(shards[-1]), "group_size:1")
        for payload in part:
            writer.write(payload)
        writer.close()
    source = records.open_source(shards, counts=(4, 5))
    assert [pickle.loads(pickle.dumps(source))[n] for n in range(9)] == payloads
    tfrecords, _ = _write(tmp_path, (9,))
    assert np.array_equal(source.index, records.open_source(tfrecords).index)

    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    with pytest.raises(DataError, match="00001-of-00002"):
        records.open_source(shards, counts=(4, 5))
