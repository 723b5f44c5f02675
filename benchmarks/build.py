"""Rate, memory and temporary disk space of dataset builds, at several sizes.

    python benchmarks/build.py                          # 2,000 and 20,000 procedural JPEG tiles
    python benchmarks/build.py --counts 2000 100000 --tiles DIR      # your own tiles

Large trees consist of hard links to the given tiles. Memory is the peak resident memory of a
process that only builds. Temporary disk space is the peak size of the data directory minus its
final size.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from input_pipeline import write_tiles

from vae.data.finding import find_images

_PROGRAM = """
import json, sys
from vae.data.fundus_tiles.build import build
report = build(sys.argv[1], sys.argv[2], file_format=sys.argv[3], patients_unknown=True,
               report=lambda line: None)
print(json.dumps([report.tiles_per_second, report.bytes, report.seconds]))
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--tiles", help="directory of the tiles to link to")
    parser.add_argument("--size", type=int, default=256, help="side of procedural tiles, pixels")
    parser.add_argument("--file_format", default="tfrecord")
    parser.add_argument("--scratch", help="where to build; must allow hard links to the tiles")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tiles = Path(options.tiles or Path(scratch) / "JPEG q95")
        if not options.tiles:
            write_tiles({"JPEG q95": tiles}, options.size, photographs=48)
        files = find_images(tiles).paths
        print(f"{'tiles':>9}{'tiles/s':>9}{'seconds':>9}{'MB':>7}{'peak MiB':>10}{'temp MB':>9}")
        for count in options.counts:
            tree = Path(scratch) / f"tree{count}"
            _link(files, tree, count)
            _measure(count, tree, Path(scratch) / f"data{count}", options.file_format)


def _link(files: list[Path], tree: Path, count: int) -> None:
    """Makes a tree of `count` tiles in folders <label>/<photograph> of 200 tiles each."""
    for number, file in enumerate(itertools.islice(itertools.cycle(files), count)):
        folder = tree / "linked" / f"p{number // 200:06d}"
        if number % 200 == 0:
            folder.mkdir(parents=True)
        os.link(file, folder / f"{number:08d}{file.suffix}")


def _measure(count: int, tree: Path, data_dir: Path, file_format: str) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tree), str(data_dir), file_format]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    watched, memory, disk = psutil.Process(process.pid), 0, 0
    while process.poll() is None:
        try:
            memory = max(memory, watched.memory_info().rss)
            disk = max(disk, _size(data_dir))
        except (psutil.NoSuchProcess, FileNotFoundError):  # Ended or renamed in the meantime.
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the build of {count} tiles failed")
    rate, size, seconds = json.loads(process.stdout.read())
    temporary = max(0, disk - _size(data_dir)) / 1e6
    print(
        f"{count:>9}{rate:>9.0f}{seconds:>9.1f}{size / 1e6:>7.0f}{memory / 2**20:>10.0f}"
        f"{temporary:>9.1f}",
        flush=True,
    )


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
