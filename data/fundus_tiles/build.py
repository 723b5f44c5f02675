"""Build of the dataset `fundus_tiles`: complete, or nothing is left behind."""

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
from vae.data.files import read_cell, require_regular, write_csv
from vae.data.fundus_tiles import NAME, VERSION, on_beam
from vae.data.fundus_tiles.builder import SHARD_BYTES, FundusTiles
from vae.data.fundus_tiles.collect import TileList, collect
from vae.data.fundus_tiles.shards import TooManyRejectedError
from vae.data.outputs import claim_folder

_STAGING = f".building-{platform.node()}-"  # Followed by the process id on this machine.


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    Attributes:
      path: The folder of the shards.
      counts: Number of tiles per split.
      rejected: (tile, reason) of each tile that was left out.
      unlisted: Images that the manifest does not name.
      bytes: Size of the shards.
      seconds: Wall time; 0 if the dataset existed already.
      patients_known: True if the splits are known to separate patients.
    """

    path: Path
    counts: dict[str, int]
    rejected: list[tuple[str, str]]
    unlisted: list[str]
    bytes: int
    seconds: float
    patients_known: bool

    def __str__(self) -> str:
        """Returns the counts by split and the number of rejected tiles."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        text = f"{counts} tiles, {self.bytes / 1e6:,.1f} MB"
        if self.seconds:
            text += f", {self.seconds:.0f} s ({self.tiles_per_second:,.0f} tiles/s)"
        text += f": {self.path}"
        if self.rejected:
            listed = self.path.parents[1] / REJECTED
            text += f"\n{len(self.rejected):,} damaged or missing tiles left out, see {listed}"
        if not self.patients_known:
            text += "\npatients are unknown: two splits may share a patient, tables will say so"
        return text

    @property
    def tiles_per_second(self) -> float:
        """Tiles per second, rejected ones included; 0 if nothing was built."""
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
    """Builds the dataset of a folder of tiles.

    Every tile is decoded once for validation. Damaged and missing tiles are left out and listed in
    `DATA_DIR/rejected.csv`. An interrupted or failed build leaves nothing but that list.

    Args:
      tiles: Folder of tiles, local or gs://bucket/folder, see
        `vae.data.fundus_tiles.collect.collect`.
      data_dir: Output folder; the shards are written to `DATA_DIR/fundus_tiles/<version>`.
      file_format: "tfrecord" or "array_record".
      max_rejected: Largest accepted share of rejected tiles, 0 to 1.
      patients: Without a manifest: CSV file with photograph, patient and optionally label, split.
      patient_regex: Without a manifest: regular expression that is searched in the paths of tile
        folders below `tiles`; its first group, else the whole match, is the patient.
      patients_unknown: Without a manifest: accepts each photograph as its own patient.
      val: Without a manifest: share of the patients for validation.
      test: Without a manifest: share of the patients for the test.
      stratify: Without a manifest: "label" applies these shares to the patients of each label.
      workers: Threads that read and validate, or processes with `beam`; None for one per core.
      shard_bytes: Approximate size of a shard.
      overwrite: Replaces an existing dataset once the new one is complete.
      beam: Writes the same shards with Apache Beam.
      beam_options: "runner=DataflowRunner,project=..."; "" for processes of this machine.
      report: Receives one-line messages.

    Raises:
      UsageError: Another dataset exists, an option is invalid, `data_dir` contains files that no
        build made, or another process writes to it.
      DataError: The tiles cannot be used, too many are damaged, or the disk is too small.
    """
    if file_format not in ("tfrecord", "array_record"):
        raise UsageError(f"file_format {file_format!r}: expected tfrecord or array_record")
    if not 0 <= max_rejected <= 1:
        raise UsageError(f"max_rejected {max_rejected}: expected a share from 0 to 1")
    if workers is not None and workers < 1:
        raise UsageError(f"workers {workers}: expected at least 1")
    if storage.is_remote(data_dir):
        raise UsageError(
            f"data_dir {data_dir}: shards are written to a disk, with --beam to one that all "
            "workers share; build there and upload the folder: runs read it from the bucket"
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
            "no temporary disk space"
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
    """Reports a complete dataset of the same tiles; refuses any other."""
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
    """Yields a temporary folder in `data_dir`; on exit removes it and new folders left empty."""
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
    """Renames `new` to `target`; an old `target` is moved next to `new`, to be removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = new.with_name(f"{new.name}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)


def _write_rejected(data_dir: Path, rejected: list[tuple[str, str]]) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    write_csv(data_dir / REJECTED, ("tile", "reason"), rejected)


def _read_rejected(data_dir: Path) -> list[tuple[str, str]]:
    try:
        with open(data_dir / REJECTED, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            return [(read_cell(row["tile"]), read_cell(row["reason"])) for row in rows]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error):
        return []
