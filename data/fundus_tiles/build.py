"""Building a dataset in its place, or leaving nothing behind."""

import contextlib
import csv
import dataclasses
import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
import tqdm

from vae.data import storage
from vae.data.dataset import open_dataset
from vae.data.errors import DataError, UsageError
from vae.data.failures import REJECTED
from vae.data.files import require_regular, write_beside
from vae.data.fundus_tiles import NAME, VERSION, on_beam
from vae.data.fundus_tiles.builder import SHARD_BYTES, FundusTiles
from vae.data.fundus_tiles.collect import TileList, collect
from vae.data.fundus_tiles.shards import TooManyRejectedError
from vae.data.outputs import claim_folder

_STAGING = f".building-{platform.node()}-"  # Plus the process's number on this machine.


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
      path: The directory of the shards.
      counts: Tiles per split.
      rejected: (tile, reason) of what was left out.
      unlisted: Images the manifest does not name.
      bytes: Size of the shards.
      seconds: What it took; 0 where the dataset was there already.
      patients_known: Whether the splits are known to be by patient.
    """

    path: Path
    counts: dict[str, int]
    rejected: list[tuple[str, str]]
    unlisted: list[str]
    bytes: int
    seconds: float
    patients_known: bool

    def __str__(self) -> str:
        """The counts by split, and what was left out."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        text = f"{counts} tiles, {self.bytes / 1e6:,.1f} MB"
        if self.seconds:
            text += f", {self.seconds:.0f} s ({self.tiles_per_second:,.0f} tiles/s)"
        text += f": {self.path}"
        if self.rejected:
            listed = self.path.parents[1] / REJECTED
            text += f"\n{len(self.rejected):,} damaged or missing tiles left out, see {listed}"
        if not self.patients_known:
            text += "\npatients are unknown: tiles of one may be in two splits, tables will say so"
        return text

    @property
    def tiles_per_second(self) -> float:
        """The rate, rejected tiles included; 0 where nothing had to be built."""
        tiles = sum(self.counts.values()) + len(self.rejected)
        return tiles / self.seconds if self.seconds else 0.0


def build(
    tiles: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    file_format: str = "tfrecord",
    max_rejected: float = 0.001,
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    patients_unknown: bool = False,
    val: float = 0.1,
    test: float = 0.1,
    stratify: str | None = None,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    beam: bool = False,
    beam_options: str = "",
    report: Callable[[str], None] = print,
) -> BuildReport:
    """Builds the dataset of a directory of tiles.

    Every tile is decoded once to validate it. Damaged and missing ones are left out and listed in
    `DATA_DIR/rejected.csv`. An interrupted or failed build leaves nothing but that list.

    Args:
      tiles: Directory of tiles, also gs://bucket/folder, see
        `vae.data.fundus_tiles.collect.collect`.
      data_dir: Where to; the shards go to `DATA_DIR/fundus_tiles/<version>`.
      file_format: "tfrecord" or "array_record".
      max_rejected: Share of the tiles that may be left out.
      patients: Without a manifest: CSV file with photograph, patient and optionally label, split.
      patient_regex: Without a manifest: searched in the paths of the photographs' folders below
        `tiles`; the first group, else the whole match, is the patient.
      patients_unknown: Without a manifest: accepts that nothing tells patients apart.
      val: Without a manifest: share of the patients for validation.
      test: Without a manifest: share of the patients for the test.
      stratify: Without a manifest: "label" takes these shares of the patients of each label.
      workers: Threads that read and validate, with `beam` processes; None for one a core.
      shard_bytes: About how large a shard is.
      overwrite: Replaces a dataset of other tiles; the old one stays until the new one is whole.
      beam: Has Apache Beam write the shards, the same ones.
      beam_options: Beam's, "runner=DataflowRunner,project=..."; "" for processes of this machine.
      report: Receives lines for a person.

    Raises:
      UsageError: Another dataset is there, or an option makes no sense; `data_dir` holds what no
        build made, or another process is writing to it.
      DataError: The tiles cannot be used, or too many are damaged, or the disk is too small.
    """
    if file_format not in ("tfrecord", "array_record"):
        raise UsageError(f"file_format {file_format!r}: expected tfrecord or array_record")
    if not 0 <= max_rejected <= 1:
        raise UsageError(f"max_rejected {max_rejected}: expected a share from 0 to 1")
    if workers is not None and workers < 1:
        raise UsageError(f"workers {workers}: expected at least 1")
    if storage.is_remote(data_dir):
        raise UsageError(
            f"data_dir {data_dir}: shards are written to a disk, with --beam one that all workers "
            "share; build there and upload the folder, a run reads it where it is"
        )
    if beam_options and not beam:
        raise UsageError(f"beam_options {beam_options!r} are for --beam")
    config = tfds.download.DownloadConfig()
    if beam:
        config.beam_options = on_beam.parse_options(beam_options, workers)
    began = time.perf_counter()
    data_dir = Path(data_dir)
    if patients is not None:
        require_regular(patients, "a CSV file of patients")
    found = collect(
        tiles,
        patients=patients,
        patient_regex=patient_regex,
        patients_unknown=patients_unknown,
        val=val,
        test=test,
        stratify=stratify,
        report=report,
    )
    with claim_folder(
        data_dir, "build", reads=[tiles, patients], option="--data_dir", known=[NAME]
    ):
        target = data_dir / NAME / VERSION
        if target.exists() and not overwrite:
            return _existing(data_dir, target, found, file_format, report)

        need = int(found.sizes.clip(min=0).sum()) + 512 * len(found)
        report(
            f"{len(found)} tiles -> {target}: {need / 2**30:.2f} GiB as {file_format}, "
            "no temporary disk beside it"
        )
        with _staging(data_dir) as staging:
            if (free := shutil.disk_usage(staging).free) < need:
                raise DataError(
                    f"{data_dir}: needs {need / 2**30:.1f} GiB and {free / 2**30:.1f} are free; "
                    "free some or choose another --data_dir"
                )
            with tqdm.tqdm(
                total=len(found), unit=" tiles", mininterval=1.0, disable=None, file=sys.stderr
            ) as bar:
                builder = FundusTiles(
                    tiles=found,
                    max_rejected=max_rejected,
                    shard_bytes=shard_bytes,
                    workers=workers,
                    progress=bar.update,
                    data_dir=staging,
                    file_format=file_format,
                )
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # "Downloading ..."
                        builder.download_and_prepare(download_config=config)
                except TooManyRejectedError as error:
                    _write_rejected(data_dir, error.rejected)
                    raise
            _replace(target, staging / NAME / VERSION)
        _write_rejected(data_dir, builder.rejected)
        return _report(data_dir, builder.rejected, found.unlisted, time.perf_counter() - began)


def _existing(
    data_dir: Path,
    target: Path,
    tiles: TileList,
    file_format: str,
    report: Callable[[str], None],
) -> BuildReport:
    """Accepts a finished dataset of the same tiles, refuses any other."""
    dataset = open_dataset(data_dir)
    for what, there, wanted in (
        ("other tiles", dataset.metadata["tiles"], tiles.fingerprint()),
        (f"{dataset.file_format} files", dataset.file_format, file_format),
    ):
        if there != wanted:
            raise UsageError(
                f"{target} holds a dataset of {what}; --overwrite replaces it, another --data_dir "
                "keeps it"
            )
    report(f"{target} is there already, built from these tiles")
    return _report(data_dir, _read_rejected(data_dir), tiles.unlisted, 0.0)


def _report(
    data_dir: Path, rejected: list[tuple[str, str]], unlisted: list[str], seconds: float
) -> BuildReport:
    dataset = open_dataset(data_dir)
    return BuildReport(
        path=dataset.path,
        counts=dataset.counts,
        rejected=rejected,
        unlisted=unlisted,
        bytes=sum(f.stat().st_size for files in dataset.shards.values() for f, _ in files),
        seconds=seconds,
        patients_known=dataset.patients_known,
    )


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A directory beside the target that is gone afterwards, as is `data_dir` if left empty."""
    existing = [parent for parent in (data_dir, *data_dir.parents) if parent.exists()]
    staging = data_dir / f"{_STAGING}{os.getpid()}"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for path in data_dir.glob(f"{_STAGING}*"):  # Left by a build that was killed.
            process = path.name.removeprefix(_STAGING)
            if not (process.isdecimal() and _running(int(process))):
                shutil.rmtree(path, ignore_errors=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        raise DataError(f"{data_dir}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        made = (path for path in (data_dir, *data_dir.parents) if path.exists())
        for path in made:
            if path in existing or any(path.iterdir()):
                break
            path.rmdir()


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(target: Path, new: Path) -> None:
    """Renames `new` to `target`; what was there is removed once that is done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = new.with_name(f"{new.name}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)


def _write_rejected(data_dir: Path, rejected: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("tile", "reason"), *rejected])
    data_dir.mkdir(parents=True, exist_ok=True)
    write_beside(data_dir / REJECTED, text.getvalue().encode())


def _read_rejected(data_dir: Path) -> list[tuple[str, str]]:
    try:
        with open(data_dir / REJECTED, encoding="utf-8", newline="") as file:
            return [(row["tile"], row["reason"]) for row in csv.DictReader(file)]
    except OSError:
        return []
