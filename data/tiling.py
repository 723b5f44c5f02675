"""Photographs -> a tree of tiles with its manifest: `fundus-vae make-tiles`."""

import collections
import csv
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.cores import available_cores
from data.cutting import Cut, Job, Record, finished, tile_origins
from data.cutting_run import estimate, format_bytes, format_time, run
from data.errors import DataError, UsageError
from data.files import replacing, require_regular, write_beside
from data.images import list_images
from data.manifest import (
    MANIFEST,
    PHOTOGRAPHS,
    PhotographRow,
    TileRow,
    write_manifest,
    write_photographs,
)
from data.outputs import claim_folder
from data.splits import REGEX_EXAMPLE, SPLITS, Assignment, assign_splits, shorten
from data.views import VIEWS, pack_views

__all__ = ["REJECTED", "TilingSummary", "make_tiles", "tile_origins"]

REJECTED = "rejected.csv"
_OPTIONS = "make_tiles.json"


@dataclasses.dataclass(frozen=True)
class TilingSummary:
    """What `make_tiles` did.

    Attributes:
      out: The directory of tiles.
      tiles: Tiles of each (label, split).
      photographs: Photographs of each (label, split), rejected ones excluded.
      rejected: (photograph, path, reason) of each photograph that gave no tiles.
      reused: How many photographs were finished already.
      size: Bytes of all tiles.
      seconds: Wall time.
    """

    out: Path
    tiles: Mapping[tuple[str, str], int]
    photographs: Mapping[tuple[str, str], int]
    rejected: Sequence[tuple[str, str, str]]
    reused: int
    size: int
    seconds: float

    def __str__(self) -> str:
        """A table of counts by label and split, then the rejected photographs."""
        width = max(len(label) for label, _ in self.tiles)
        lines = [f"{'tiles':{width}}" + "".join(f"{split:>10}" for split in SPLITS)]
        for label in sorted({label for label, _ in self.tiles}):
            counts = (self.tiles.get((label, split), 0) for split in SPLITS)
            lines.append(f"{label:{width}}" + "".join(f"{count:10,}" for count in counts))
        lines.append(
            f"{sum(self.tiles.values()):,} tiles of {sum(self.photographs.values()):,} photographs"
            f" ({self.reused:,} finished before), {format_bytes(self.size)},"
            f" {format_time(self.seconds)}: {self.out / MANIFEST}"
        )
        if self.rejected:
            lines.append(f"{len(self.rejected):,} rejected, see {self.out / REJECTED}:")
            lines.extend(f"  {reason}" for _, _, reason in self.rejected)
        return "\n".join(lines)


def make_tiles(
    photographs: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tile: int = 256,
    stride: int = 128,
    min_fov: float = 0.9,
    fov_width: int | None = None,
    file_format: str = "png",
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    patients_unknown: bool = False,
    val: float = 0.1,
    test: float = 0.1,
    limit: int | None = None,
    overlays: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> TilingSummary:
    """Cuts every photograph of a tree into tiles inside its field of view.

    A photograph's label is its folder's name; its id is "<label>/<stem>" and its tiles are
    `out/<label>/<stem>/<stem>_y<y>_x<x>.png`. `manifest.csv`, `photographs.csv` and
    `views.npy`, the photographs in 64 x 64 pixels, are written at the end. Interrupted, the same
    call continues: finished photographs are not cut again.

    Args:
      photographs: Folder searched for images, with its subfolders.
      out: New or empty folder, or one that the same call has begun.
      tile: Side of a tile in pixels.
      stride: Pixels between neighbouring tiles, before a jitter of up to 4 pixels.
      min_fov: Smallest share of a tile inside the field of view.
      fov_width: Scales each photograph so that its field of view has this diameter in pixels.
      file_format: "png", or "jpg" (quality 95, 4:4:4) for the tiles of train; val's and test's
        are always PNG.
      patients: CSV file with photograph, patient and optionally label, split.
      patient_regex: Finds the patient in a photograph's file name.
      patients_unknown: Confirms that each photograph counts as its own patient.
      val: Share of the patients for validation, where the file names no split.
      test: Share of the patients for the test, where the file names no split.
      limit: Cuts only so many photographs, of every split in turn.
      overlays: Writes pictures of the fields of view and the tiles to `out/overlays`.
      seed: Of the jitter.
      workers: Processes; as many as there are cores unless told. 1 stays in this process.
      progress: Prints what is going to be done and how far it is.

    Returns:
      Counts, and the photographs rejected with reasons (in `out/rejected.csv` too); as a string it
      is the table to print.

    Raises:
      UsageError: An option is out of range, or `out` was begun with other options, was not made by
        this function, or is being written to by another process.
      DataError: No photographs, ambiguous names, an empty split, no photograph left, or no space.
    """
    start = time.monotonic()
    say = _say if progress else _stay_silent
    root, out = Path(os.path.abspath(photographs)), Path(os.path.abspath(out))
    cut = Cut(tile=tile, stride=stride, min_fov=min_fov, fov_width=fov_width, seed=seed)
    _check_options(cut, file_format, limit, workers)
    if out.is_relative_to(root) or root.is_relative_to(out):
        raise UsageError(f"{out} and the photographs in {root}: neither may lie in the other")

    if patients is not None:
        require_regular(patients, "a CSV file of patients")
    files = _by_id(list_images(root))
    assigned = assign_splits(
        list(files), patients=patients, patient_regex=patient_regex, val=val, test=test, report=say
    )
    if patients is None and patient_regex is None and not patients_unknown:
        say(
            f"No word on patients: each of the {len(files):,} photographs counts as its own"
            f" patient. If some show the same person, tell them apart: {REGEX_EXAMPLE}."
        )
    chosen = _limited(assigned, limit)
    jobs = [
        Job(
            path=files[id],
            photograph=assignment.photograph,
            out=out,
            suffix=".jpg" if file_format == "jpg" and assignment.split == "train" else ".png",
            cut=cut,
            overlay=overlays,
        )
        for id, assignment in chosen.items()
    ]
    _refuse_shared_ids(jobs)
    options = {
        "photographs": str(root),
        **dataclasses.asdict(cut),
        "file_format": file_format,
        "patients": patients and os.path.abspath(patients),
        "patient_regex": patient_regex,
        "val": val,
        "test": test,
    }
    with claim_folder(out, "make-tiles", reads=[root, patients], known=[_OPTIONS]):
        _begin(out, options)
        todo = [job for job in jobs if finished(job) is None]
        reused = len(jobs) - len(todo)
        say(f"{len(jobs):,} photographs" + (f", {reused:,} of them finished" if reused else ""))
        workers = min(workers or available_cores(), len(jobs))
        if todo:
            say(f"To cut: {estimate(todo, workers, out)}")
        results = run(jobs, workers, progress)
        return _conclude(out, jobs, list(chosen.values()), results, reused, start)


def _check_options(cut: Cut, file_format: str, limit: int | None, workers: int | None) -> None:
    for name, value in (("tile", cut.tile), ("stride", cut.stride)):
        if value < 1:
            raise UsageError(f"{name} {value}: expected at least 1 pixel")
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: expected at least 1")
    if not 0 < cut.min_fov <= 1:
        raise UsageError(f"min_fov {cut.min_fov}: expected a share above 0, at most 1")
    if cut.fov_width is not None and cut.fov_width < cut.tile:
        raise UsageError(f"fov_width {cut.fov_width} is smaller than a tile of {cut.tile}")
    if file_format not in ("png", "jpg"):
        raise UsageError(f"file_format {file_format!r}: expected png or jpg")


def _by_id(paths: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        id = f"{path.parent.name}/{path.stem}"
        if (other := files.setdefault(id, path)) is not path:
            raise DataError(
                f"two photographs are called {id!r}: {other} and {path}; rename one of them or"
                f" its folder"
            )
    return files


def _refuse_shared_ids(jobs: Sequence[Job]) -> None:
    """Labels from the patients file may bring photographs of different folders together."""
    paths: dict[str, Path] = {}
    for job in jobs:
        if (other := paths.setdefault(job.photograph, job.path)) is not job.path:
            raise DataError(
                f"two photographs are called {job.photograph!r} under their new label: {other} and"
                f" {job.path}; rename one of them"
            )


def _limited(assigned: Mapping[str, Assignment], limit: int | None) -> Mapping[str, Assignment]:
    """The first `limit` photographs, taken from the splits in turn."""
    if limit is None:
        return assigned
    ranks: collections.Counter[str] = collections.Counter()
    order = []
    for id, assignment in assigned.items():
        order.append((ranks[assignment.split], SPLITS.index(assignment.split), id))
        ranks[assignment.split] += 1
    kept = {id for _, _, id in sorted(order)[:limit]}
    return {id: assignment for id, assignment in assigned.items() if id in kept}


def _begin(out: Path, options: Mapping[str, object]) -> None:
    """Notes the options in `out`, or refuses a folder that was begun with others."""
    path = out / _OPTIONS
    if path.exists():
        require_regular(path, "the options of make-tiles")
        try:
            before = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path}: is damaged: {error}; delete {out} and begin anew") from None
        for name, value in options.items():
            if before.get(name) != value:
                raise UsageError(
                    f"{out} was begun with {name} {before.get(name)!r}, now {name} is {value!r};"
                    f" give another folder, or delete this one"
                )
        return
    try:
        write_beside(path, json.dumps(options, indent=2, ensure_ascii=False).encode())
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error


def _conclude(
    out: Path,
    jobs: Sequence[Job],
    assignments: Sequence[Assignment],
    results: Sequence[Record | str],
    reused: int,
    start: float,
) -> TilingSummary:
    """Writes the tables and counts."""
    cut_ones = [
        (job, assignment, result)
        for job, assignment, result in zip(jobs, assignments, results, strict=True)
        if isinstance(result, Record)
    ]
    rejected = [
        (job.photograph, str(job.path), result)
        for job, result in zip(jobs, results, strict=True)
        if isinstance(result, str)
    ]
    _write_rejected(out / REJECTED, rejected)
    lost = {a.split for a in assignments} - {a.split for _, a, _ in cut_ones}
    if lost:
        reasons = shorten(reason for _, _, reason in rejected)
        raise DataError(
            f"no tiles in {', '.join(s for s in SPLITS if s in lost)}: all photographs there were"
            f" rejected ({out / REJECTED}): {reasons}"
        )
    pack_views(out / VIEWS, (job.view_path for job, _, _ in cut_ones), len(cut_ones))
    write_photographs(
        out / PHOTOGRAPHS,
        (
            PhotographRow(
                **dataclasses.asdict(a), path=str(job.path), **_geometry(r, "height", "width")
            )
            for job, a, r in cut_ones
        ),
    )
    write_manifest(
        out / MANIFEST,
        (
            TileRow(
                tile=job.tile_name(y, x),
                **dataclasses.asdict(a),
                y=y,
                x=x,
                fov_share=share,
                **_geometry(r, "photo_height", "photo_width"),
            )
            for job, a, r in cut_ones
            for y, x, share in r.tiles
        ),
    )
    tiles: collections.Counter[tuple[str, str]] = collections.Counter()
    for _, a, r in cut_ones:
        tiles[a.label, a.split] += len(r.tiles)
    return TilingSummary(
        out=out,
        tiles=dict(tiles),
        photographs=dict(collections.Counter((a.label, a.split) for _, a, _ in cut_ones)),
        rejected=rejected,
        reused=reused,
        size=sum(r.size for _, _, r in cut_ones),
        seconds=time.monotonic() - start,
    )


def _geometry(record: Record, height: str, width: str) -> dict[str, float]:
    names = ("fov_x", "fov_y", "fov_radius", "fov_top", "fov_bottom")
    values = dict(zip(names, record.fov, strict=True))
    return {height: record.height, width: record.width, "scale": record.scale, **values}


def _write_rejected(path: Path, rejected: Sequence[tuple[str, str, str]]) -> None:
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("photograph", "path", "reason"))
        writer.writerows(rejected)


def _say(line: str) -> None:
    print(line, flush=True)


def _stay_silent(line: str) -> None:
    del line
