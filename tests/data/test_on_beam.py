"""Builds with Apache Beam give the same files. Skipped if Beam is not installed.

Every Beam build runs in a subprocess, so its threads and warnings do not affect other tests.
"""

import csv
import filecmp
import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vae.data import manifest, pipeline
from vae.data.errors import UsageError
from vae.data.fundus_tiles.build import build
from vae.data.images import encode_image
from vae.data.outputs import MARKER

ROOT = Path(__file__).parents[2]
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="no Apache Beam"
)
OPTIONS = {"shard_bytes": 6_000, "max_rejected": 0.1}


@pytest.fixture
def tiles(tmp_path):
    """60 tiles of 12 photographs with a manifest; one is damaged and one missing."""
    root, rows = tmp_path / "tiles", []
    for number in range(60):
        photograph = f"hrf/p{number // 5}"
        path = f"{photograph}/{number}.png"
        small = np.random.default_rng(number).integers(30, 220, (4, 4, 3), np.uint8)
        side = 32 + number % 3
        image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode_image(image, ".png"))
        split = "val" if number < 5 else "test" if number < 10 else "train"
        rows.append(
            manifest.TileRow(
                path, photograph, f"patient{number // 5}", "hrf", split, number, 3, 0.5, 99, 98,
                *(float(number // 5),) * 7, 0.9,
            )
        )  # fmt: skip
    manifest.write_manifest(root / "manifest.csv", rows)
    _spoil(root, ["hrf/p3/17.png"])
    (root / "hrf/p5/28.png").unlink()
    return root


def _spoil(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:-20])


def _repair(root: Path) -> None:
    for name in ("hrf/p3/17.png", "hrf/p5/28.png"):
        (root / name).write_bytes((root / "hrf/p0/0.png").read_bytes())


def _on_beam(
    tiles: Path, data_dir: Path, beam_options: str, limit: int | None = None, **options
) -> subprocess.CompletedProcess:
    """Builds in a separate process, with the exit code and the message of the command."""
    program = (
        "import json, sys\n"
        "from vae.data.errors import FundusError, show\n"
        "from vae.data.fundus_tiles.build import build\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        build(sys.argv[1], sys.argv[2], beam=True, **json.loads(sys.argv[3]))\n"
        "    except FundusError as error:\n"
        "        sys.exit(show(error))\n"
    )
    options |= {"beam_options": beam_options, "workers": 2}
    return subprocess.run(
        [sys.executable, "-c", program, tiles, data_dir, json.dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def _error(done: subprocess.CompletedProcess) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def _files(directory: Path) -> list[str]:
    """Returns all files except the marker, which names the process that wrote them."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != MARKER)
    return sorted(str(path.relative_to(directory)) for path in files)


@needs_beam
def test_two_workers_write_the_same_files(tiles, tmp_path):
    build(tiles, tmp_path / "plain", report=lambda line: None, **OPTIONS)
    done = _on_beam(tiles, tmp_path / "beam", "", **OPTIONS)
    assert done.returncode == 0, done.stderr
    names = _files(tmp_path / "plain")
    assert _files(tmp_path / "beam") == names
    # Enough shards for numbers of two digits.
    assert sum("tfrecord" in name and "index" not in name for name in names) > 12
    match = filecmp.cmpfiles(tmp_path / "plain", tmp_path / "beam", names, shallow=False)
    assert match == (names, [], [])  # shards, indexes, descriptions and rejected.csv

    dataset = pipeline.open_dataset(tmp_path / "beam")
    assert sum(dataset.counts.values()) == 58
    assert dataset.metadata["rejected"] == 2
    assert dataset.metadata["smallest"]["height"] == 32
    with open(tmp_path / "beam" / "rejected.csv", newline="") as file:
        assert [row["tile"] for row in csv.DictReader(file)] == ["hrf/p3/17.png", "hrf/p5/28.png"]


@needs_beam
def test_many_damaged_tiles_are_refused(tiles, tmp_path):
    _spoil(tiles, [f"hrf/p7/{number}.png" for number in range(35, 40)])
    done = _on_beam(tiles, tmp_path / "d", "runner=FnApiRunner", **OPTIONS)
    assert done.returncode == 1
    assert "7 of 60 tiles are damaged or missing" in _error(done)
    assert _files(tmp_path / "d") == ["rejected.csv"]


@needs_beam
def test_workers_that_cannot_write_leave_nothing(tiles, tmp_path):
    done = _on_beam(tiles, tmp_path / "d", "runner=FnApiRunner", limit=25_000, max_rejected=0.1)
    assert done.returncode == 1
    assert "the Beam pipeline failed: " in _error(done)
    assert "File too large" in _error(done)
    assert not (tmp_path / "d").exists()


@needs_beam
def test_tfds_build_takes_beam_options(tiles, tmp_path):
    """Builds like `tfds build --beam_pipeline_options=runner=FnApiRunner`, without tensorflow."""
    _repair(tiles)
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        "from apache_beam.options.pipeline_options import PipelineOptions\n"
        "from vae.data.fundus_tiles.builder import FundusTiles\n"
        "config = tfds.download.DownloadConfig(manual_dir=sys.argv[1])\n"
        "config.beam_options = PipelineOptions(flags=['--runner=FnApiRunner'])\n"
        "builder = tfds.builder(FundusTiles.name, data_dir=sys.argv[2])\n"
        "builder.download_and_prepare(download_config=config)\n"
    )
    command = [sys.executable, "-c", program, tiles, tmp_path / "d"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    build(tiles, tmp_path / "plain", report=lambda line: None)
    there, plain = (pipeline.open_dataset(tmp_path / name) for name in ("d", "plain"))
    assert there.fingerprint == plain.fingerprint


def test_missing_beam_is_reported_with_a_remedy(tiles, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match=r"pip install 'fundus-vae\[beam\]'"):
        build(tiles, tmp_path / "d", beam=True, report=lambda line: None)
    with pytest.raises(UsageError, match=r"'runner=x' are for --beam"):
        build(tiles, tmp_path / "d", beam_options="runner=x", report=lambda line: None)
    assert not (tmp_path / "d").exists()


@needs_beam
def test_unknown_runner_is_refused(tiles, tmp_path):
    done = _on_beam(tiles, tmp_path / "d", "runner=NoSuch")
    assert done.returncode == 2
    assert "--beam_options=runner=NoSuch" in _error(done)
