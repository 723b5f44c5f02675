"""Conversion of photographs to a folder of tiles with a manifest: `fundus-vae make-tiles`."""

import collections
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vae.data.copies import find_copies
from vae.data.cores import available_cores
from vae.data.cutting import CutSettings, Job, Record, finished
from vae.data.cutting_run import estimate, format_bytes, format_time, run
from vae.data.errors import DataError, UsageError
from vae.data.failures import REJECTED, Failure, write_rejected
from vae.data.files import require_regular, write_beside
from vae.data.finding import find_images
from vae.data.fov import FIELDS, MAX_LOST_SHARE
from vae.data.manifest import (
    MANIFEST,
    OVERLAYS,
    PHOTOGRAPHS,
    PhotographRow,
    TileRow,
    write_manifest,
    write_photographs,
)
from vae.data.names import name_photographs, path_below, shorten
from vae.data.outputs import claim_folder
from vae.data.region import FovChoice
from vae.data.schema import parse_json
from vae.data.splits import REGEX_EXAMPLE, SPLITS, Assignment, assign_splits
from vae.data.thumbnails import THUMBNAILS, pack_thumbnails

_OPTIONS = "make_tiles.json"
PATCH = 8  # sides of tiles are multiples of the side of a patch of the models, pixels
# Names in the folder of tiles; no folder of photographs may have one of them.
_TAKEN = frozenset((MANIFEST, PHOTOGRAPHS, THUMBNAILS, OVERLAYS, REJECTED, _OPTIONS))


@dataclasses.dataclass(frozen=True)
class TilingSummary:
    """The result of `make_tiles`.

    Attributes:
      out: The folder of tiles.
      tiles: Number of tiles of each (label, split).
      photographs: Number of photographs of each (label, split), without rejected ones.
      rejected: The failure of each photograph that gave no tiles.
      reused: Number of photographs that an earlier call had finished.
      size: Size of all tiles in bytes.
      seconds: Wall time.
    """

    out: Path
    tiles: Mapping[tuple[str, str], int]
    photographs: Mapping[tuple[str, str], int]
    rejected: Sequence[Failure]
    reused: int
    size: int
    seconds: float

    def __str__(self) -> str:
        """Returns a table of counts by label and split, and the list of rejected photographs."""
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
            lines.extend(f"  {failure.reason}" for failure in self.rejected)
        return "\n".join(lines)


def make_tiles(
    photographs: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tile: int = 256,
    stride: int = 128,
    min_fov: float = 0.9,
    fov: str = "auto",
    fov_mask: str | os.PathLike | None = None,
    max_lost_share: float = MAX_LOST_SHARE,
    fov_width: int | None = None,
    file_format: str = "png",
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    patients_unknown: bool = False,
    val: float = 0.1,
    test: float = 0.1,
    stratify: str | None = None,
    limit: int | None = None,
    overlays: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> TilingSummary:
    """Cuts every photograph below a folder into tiles inside its field of view.

    A photograph's id is its path below `photographs` without suffix. For a photograph directly in
    that folder, it is "<name of the folder>/<stem>". Its tiles are `out/<id>/<stem>_y<y>_x<x>.png`.
    Its label comes from `patients`, else it is the name of its folder. `manifest.csv`,
    `photographs.csv` and `thumbnails.npy` (uint8, 64 x 64 pixels) are written at the end. After an
    interruption, the same call continues and does not cut finished photographs again. Photographs
    whose files have the same content are reported and share a split.

    Args:
      photographs: Folder that is searched for images, with its subfolders.
      out: New or empty folder, or one that the same call has begun.
      tile: Side of a tile in pixels.
      stride: Distance of neighbouring tiles in pixels, before a jitter of up to 4 pixels.
      min_fov: Smallest share of a tile inside the field of view, above 0, at most 1.
      fov: "auto" detects the lit disc, "none" takes the whole picture.
      fov_mask: Folder with a mask for each photograph, or None, see `vae.data.region`.
      max_lost_share: Largest accepted share of the lit area outside the disc, 0 to 1.
      fov_width: Scales each photograph so that its field of view has this diameter in pixels.
      file_format: "png" or "jpg" (quality 95, 4:4:4) for the tiles of train; those of val and
        test are always PNG.
      patients: CSV file with photograph, patient and optionally label, split.
      patient_regex: Regular expression that is searched in each path below `photographs`, without
        suffix; its first group, else the whole match, is the patient.
      patients_unknown: Confirms that each photograph counts as its own patient.
      val: Share of the patients for validation, if the file names no split.
      test: Share of the patients for the test, if the file names no split.
      stratify: "label" applies these shares to the patients of each label.
      limit: Largest number of photographs to cut, taken from the splits in turn; None for all.
      overlays: Writes pictures of the fields of view and the tiles to `out/overlays`.
      seed: Seed of the jitter.
      workers: Number of processes; None for one per core, 1 for this process only.
      progress: Prints an estimate and the progress.

    Returns:
      Counts, and the rejected photographs with reasons (also in `out/rejected.csv`); `str` of it is
      the table to print.

    Raises:
      UsageError: An option is out of range; or `out` was begun with other options, was not made by
        this function, or another process writes to it.
      DataError: There are no photographs, their names are ambiguous, a split is empty, all
        photographs are rejected, or the disk is full.
    """
    start = time.monotonic()
    say = _say if progress else _stay_silent
    root, out = Path(os.path.abspath(photographs)), Path(os.path.abspath(out))
    masks = None if fov_mask is None else os.path.abspath(fov_mask)
    choice = FovChoice(fov, masks, max_lost_share)
    cut = CutSettings(tile, stride, min_fov, fov_width, seed, choice)
    _check_options(cut, file_format, limit, workers)
    if out.is_relative_to(root) or root.is_relative_to(out):
        raise UsageError(f"{out} and the photographs in {root}: neither may lie in the other")

    if patients is not None:
        require_regular(patients, "a CSV file of patients")
    found = find_images(root)
    if left_out := found.left_out_line():
        say(f"{root}: {left_out}")
    files = name_photographs(root, found.paths, taken=_TAKEN)
    assigned = assign_splits(
        list(files),
        searched=[path_below(root, path) for path in files.values()],
        patients=patients,
        patient_regex=patient_regex,
        val=val,
        test=test,
        stratify=stratify,
        copies=find_copies(files),
        report=say,
    )
    if patients is None and patient_regex is None and not patients_unknown:
        say(
            f"No word on patients: each of the {len(files):,} photographs counts as its own"
            f" patient. If several show one person, name the patients: {REGEX_EXAMPLE}."
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
    options = {
        "photographs": str(root),
        **_flat(cut),
        "file_format": file_format,
        "patients": patients and os.path.abspath(patients),
        "patient_regex": patient_regex,
        "val": val,
        "test": test,
        "stratify": stratify,
    }
    with claim_folder(out, "make-tiles", reads=[root, patients, masks], known=[_OPTIONS]):
        _begin(out, options)
        todo = [job for job in jobs if finished(job) is None]
        reused = len(jobs) - len(todo)
        say(f"{len(jobs):,} photographs" + (f", {reused:,} of them finished" if reused else ""))
        workers = min(workers or available_cores(), len(jobs))
        if todo:
            say(f"To cut: {estimate(todo, workers, out)}")
        results = run(jobs, workers, progress)
        return _conclude(out, jobs, list(chosen.values()), results, reused, start)


def _check_options(
    cut: CutSettings, file_format: str, limit: int | None, workers: int | None
) -> None:
    for name, value in (("tile", cut.tile), ("stride", cut.stride)):
        if value < 1:
            raise UsageError(f"{name} {value}: expected at least 1 pixel")
    if over := cut.tile % PATCH:
        smaller = max(PATCH, cut.tile - over)
        raise UsageError(
            f"tile {cut.tile}: expected a multiple of {PATCH}, the side of a patch of the models;"
            f" {' or '.join(map(str, dict.fromkeys((smaller, cut.tile - over + PATCH))))} fits"
        )
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: expected at least 1")
    if not 0 < cut.min_fov <= 1:
        raise UsageError(f"min_fov {cut.min_fov}: expected a share above 0, at most 1")
    if cut.fov_width is not None and cut.fov_width < cut.tile:
        raise UsageError(f"fov_width {cut.fov_width} is smaller than a tile of {cut.tile}")
    if file_format not in ("png", "jpg"):
        raise UsageError(f"file_format {file_format!r}: expected png or jpg")


def _flat(cut: CutSettings) -> dict[str, object]:
    """Returns the options that decide the pixels of tiles, by name."""
    options = dataclasses.asdict(cut)
    return options | options.pop("choice")


def _limited(assigned: Mapping[str, Assignment], limit: int | None) -> Mapping[str, Assignment]:
    """Returns the first `limit` photographs, taken from the splits in turn."""
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
    """Writes the options to `out`, or refuses a folder that was begun with other options."""
    path = out / _OPTIONS
    if path.exists():
        require_regular(path, "the options of make-tiles")
        before = parse_json(path.read_bytes(), path, remedy=f"delete {out} and start again")
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
    results: Sequence[Record | Failure],
    reused: int,
    start: float,
) -> TilingSummary:
    """Writes the tables and the thumbnails, and returns the summary."""
    cut_ones = [
        (job, assignment, result)
        for job, assignment, result in zip(jobs, assignments, results, strict=True)
        if isinstance(result, Record)
    ]
    rejected = [result for result in results if isinstance(result, Failure)]
    write_rejected(out / REJECTED, rejected)
    reasons = shorten(failure.reason for failure in rejected)
    if not cut_ones:
        raise DataError(f"no tiles: all photographs were rejected ({out / REJECTED}): {reasons}")
    pack_thumbnails(out / THUMBNAILS, (job.thumbnail_path for job, _, _ in cut_ones), len(cut_ones))
    write_photographs(
        out / PHOTOGRAPHS,
        (
            PhotographRow(
                **dataclasses.asdict(a),
                path=str(job.path),
                **_geometry(r, "height", "width"),
                lost_share=round(r.lost_share, 4),
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
    # Raised after the tables are written, so that no tile of the other splits is lost.
    lost = {a.split for a in assignments} - {a.split for _, a, _ in cut_ones}
    if lost:
        raise DataError(
            f"no tiles in {', '.join(s for s in SPLITS if s in lost)}: all photographs there were"
            f" rejected ({out / REJECTED}): {reasons}"
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
    values = {f"fov_{name}": value for name, value in zip(FIELDS, record.fov, strict=True)}
    return {height: record.height, width: record.width, "scale": record.scale, **values}


def _say(line: str) -> None:
    print(line, flush=True)


def _stay_silent(line: str) -> None:
    del line
