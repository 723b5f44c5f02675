"""Writing the shards of a build with Apache Beam: on many machines, or in local processes.

The Beam support of tfds puts every list of tiles into the description of the pipeline (services
accept about 10 MB), and confuses the lengths of more than ten shards. Here a shard is a *job*: a
file next to the shards, which a worker reads and where it writes the result. A job does the same
work as a build without Beam, so the shards have the same bytes. A runner that loses contact with a
worker may run a job twice; the files are the same again.

Workers need this package, and must see the tiles and the data folder under the same paths.
"""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow_datasets as tfds

from vae.data import records, schema
from vae.data.cores import available_cores
from vae.data.errors import DataError, FundusError, UsageError
from vae.data.extras import require_extra
from vae.data.files import replacing, write_beside
from vae.data.fundus_tiles.shards import Notes, Shard, TooManyRejectedError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_JOBS = "jobs"  # Folder next to the shards during the build.
_THREADS = 4  # Per job. They wait for files; the runner starts one job per core.


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard to write."""

    shard: Shard
    path: Path
    writer: tfds.core.writer.ShardWriter


@dataclasses.dataclass(frozen=True)
class _Done:
    """The result of a job; `smallest` is as in `Notes`."""

    count: int
    rejected: list[tuple[str, str]]
    smallest: dict[str, str | int]


_DONE = {
    "count": schema.whole(),
    "rejected": [[schema.TEXT, schema.TEXT]],
    "smallest": schema.OBJECT,
}


def parse_options(text: str, workers: int | None = None) -> "PipelineOptions":
    """Parses Beam's options.

    Args:
      text: "runner=DataflowRunner,project=...", as for `tfds build`. Without a runner, processes of
        this machine do the work.
      workers: Number of these processes; None for one per core.

    Raises:
      UsageError: Apache Beam is not installed, or the runner does not exist.
    """
    require_extra("beam", "--beam", "apache_beam")
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import create_runner

    flags = [f"--{option.strip().removeprefix('--')}" for option in text.split(",") if option]
    runner = [flag.partition("=")[2] for flag in flags if flag.startswith("--runner=")]
    if not runner:
        # The engine of the DirectRunner. The DirectRunner first tries to download another one.
        flags += [
            "--runner=FnApiRunner",
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={workers or available_cores()}",
        ]
    else:
        try:
            create_runner(runner[-1])
        except (ImportError, AttributeError, ValueError, RuntimeError) as error:
            raise UsageError(f"--beam_options=runner={runner[-1]}: {error}") from error
    return PipelineOptions(flags)


def write_shards(
    shards: Mapping[str, Sequence[tuple[Shard, os.PathLike]]],
    writer: tfds.core.writer.ShardWriter,
    notes: Notes,
    *,
    runner: object = None,
    options: "PipelineOptions | None" = None,
) -> dict[str, list[int]]:
    """Writes every shard and its index.

    Args:
      shards: Per split, the examples and the output file of each shard.
      writer: Writes examples to a file; every worker receives a copy.
      notes: Receives the notes of the workers.
      runner: Beam's runner; None for the one in the options.
      options: Beam's options.

    Returns:
      Per split, the number of examples in each shard.

    Raises:
      TooManyRejectedError: More tiles are damaged than the notes allow.
      DataError: The pipeline failed.
    """
    import apache_beam as beam

    folder = Path(next(iter(shards.values()))[0][1]).absolute().parent / _JOBS
    folder.mkdir()
    names: dict[str, list[str]] = {}
    for split, parts in shards.items():
        for shard, path in parts:
            job = _Job(shard.apart(_THREADS), Path(path).absolute(), writer)
            file = folder / f"{job.path.name}.pickle"
            file.write_bytes(pickle.dumps(job))
            names.setdefault(split, []).append(os.fspath(file))
    try:
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            _ = (
                pipeline
                | beam.Create([name for files in names.values() for name in files])
                | beam.Reshuffle()
                | beam.Map(_run)
            )
    except FundusError:
        raise
    except Exception as error:  # Every runner has its own exception types.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise DataError(f"the Beam pipeline failed: {reason}") from error

    lengths: dict[str, list[int]] = {}
    for split, files in names.items():
        for file in files:
            result = _result(file)
            done = _Done(
                **schema.parse_json(result.read_bytes(), result, _DONE, remedy="build again")
            )
            lengths.setdefault(split, []).append(done.count)
            notes.merge([tuple(pair) for pair in done.rejected], done.smallest)
    shutil.rmtree(folder)
    if len(notes.rejected) > notes.limit * notes.total:
        raise TooManyRejectedError(notes.rejected, notes.total, notes.limit)
    return lengths


def _run(file: str) -> None:
    """Runs the job in a file, on a worker."""
    job: _Job = pickle.loads(Path(file).read_bytes())
    count = 0
    try:
        with replacing(job.path) as unfinished:
            count = job.writer.write(examples=job.shard(), path=unfinished)
        records.write_index(job.path)
    except TooManyRejectedError:
        pass  # An error would make the runner retry. The build fails when all jobs are done.
    done = _Done(count, job.shard.notes.rejected, job.shard.notes.smallest)
    write_beside(_result(file), json.dumps(dataclasses.asdict(done)).encode())


def _result(file: str) -> Path:
    return Path(file).with_suffix(".json")
