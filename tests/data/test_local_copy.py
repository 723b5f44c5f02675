"""Local copies of datasets: complete, made once, shared by the processes of a machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae.data import pipeline
from vae.data.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tiny_data, tmp_path):
    """The tiny dataset in a folder that represents a shared disk."""
    return shutil.copytree(tiny_data, tmp_path / "shared")


@pytest.fixture
def said():
    return []


def _open(source, tmp_path, said):
    return pipeline.open_dataset(source, cache_dir=tmp_path / "cache", report=said.append)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_copy_equals_the_dataset_and_is_made_once(source, tmp_path, said):
    original = pipeline.open_dataset(source)
    copy = _open(source, tmp_path, said)
    assert copy.path.parent == tmp_path / "cache"
    assert _content(copy.path) == _content(original.path)
    assert copy.fingerprint == original.fingerprint
    assert len(said) == 1
    assert "copying" in said[0]
    before = _inodes(copy.path)
    assert _open(source, tmp_path, said).path == copy.path
    assert len(said) == 1
    assert _inodes(copy.path) == before


def test_interrupted_copy_is_continued(source, tmp_path, said):
    copy = _open(source, tmp_path, said).path
    before = _inodes(copy)
    lost, short, *_ = sorted(copy.glob("*tfrecord*"))
    lost.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    (copy / f".{lost.name}.123.tmp").write_bytes(b"half")
    _open(source, tmp_path, said)
    assert "copying" in said[1]
    assert ": 2 files, " in said[1]
    assert _content(copy) == _content(pipeline.open_dataset(source).path)
    after = _inodes(copy)
    assert {name for name in after if after[name] == before[name]} >= set(before) - {
        lost.name,
        short.name,
    }


def test_rebuilt_dataset_gets_its_own_copy(source, tmp_path, said):
    first = _open(source, tmp_path, said).path
    shard = next(pipeline.open_dataset(source).path.glob("*val*tfrecord*"))
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content)  # The same size, but another time of modification.
    second = _open(source, tmp_path, said).path
    assert first != second
    assert first.exists()


def test_too_little_disk_space_is_reported_with_both_numbers(source, tmp_path, said, monkeypatch):
    usage = type("Usage", (), {"free": 2 << 10})
    monkeypatch.setattr("vae.data.local_copy.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs \d+\.\d MiB and 0\.0 MiB are free"):
        _open(source, tmp_path, said)
    assert not list((tmp_path / "cache").rglob("*tfrecord*"))


def test_incomplete_file_is_refused(source, tmp_path, said, monkeypatch):
    def short(path, target):
        target.write_bytes(Path(path).read_bytes()[:-1])

    monkeypatch.setattr("vae.data.storage.download", short)
    with pytest.raises(DataError, match=r"\d+ of \d+ bytes arrived"):
        _open(source, tmp_path, said)
    assert set(_content(tmp_path / "cache")) == set()


def test_unwritable_folder_is_named(source, tmp_path, said):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=rf"{tmp_path / 'cache'}/fundus_tiles-\w+: "):
        _open(source, tmp_path, said)
    with pytest.raises(UsageError, match="gs://x/y: expected a local directory"):
        pipeline.open_dataset(source, cache_dir="gs://x/y")


def test_processes_of_a_machine_share_one_copy(source, tmp_path):
    """Three processes with slow copies: the first copies, and the others wait for its copy."""
    program = (
        "import sys, time\n"
        "from vae.data import pipeline, storage\n"
        "download = storage.download\n"
        "storage.download = lambda *args: (time.sleep(0.1), download(*args))\n"
        "dataset = pipeline.open_dataset(sys.argv[1], cache_dir=sys.argv[2])\n"
        "print(dataset.fingerprint)\n"
    )
    command = [sys.executable, "-c", program, source, tmp_path / "cache"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("copying" in text for text in printed) == 1
    fingerprint = pipeline.open_dataset(source).fingerprint
    assert all(text.endswith(f"{fingerprint}\n") for text in printed)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_killed_copy_leaves_no_file_under_a_final_name_and_no_lock(source, tmp_path, said):
    program = (
        "import os, signal, sys\n"
        "from vae.data import pipeline, storage\n"
        "def die(path, target):\n"
        "    target.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.download = die\n"
        "pipeline.open_dataset(sys.argv[1], cache_dir=sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, source, tmp_path / "cache"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    assert all(name.endswith(".tmp") for name in _content(tmp_path / "cache"))
    copy = _open(source, tmp_path, said).path
    assert _content(copy) == _content(pipeline.open_dataset(source).path)
