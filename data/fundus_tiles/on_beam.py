"""The shards of a build written by Apache Beam: on many machines, or processes of this one.

tfds has a way of its own, which takes every list of tiles into the description of the pipeline
(services accept about 10 MB), and mixes up the lengths of more than ten shards. Here a shard is a
*job*, a file beside the shards that a worker reads, and whose result it writes there. Jobs are the
same work as without Beam, so the shards are the same bytes; done twice, as runners do when they
lose sight of a worker, they give the same files again.

Workers need this package, and see the tiles and the data directory under the same paths.
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

from vae.data import records
from vae.data.cores import available_cores
from vae.data.errors import DataError, FundusError, UsageError
from vae.data.files import replacing, write_beside
from vae.data.fundus_tiles.shards import Notes, Shard, TooManyRejectedError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_JOBS = "jobs"  # Beside the shards while they are built.
_THREADS = 4  # Of a job: they wait for files, the runner starts as many jobs as there are cores.


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard to write."""

    shard: Shard
    path: Path
    writer: tfds.core.writer.ShardWriter


@dataclasses.dataclass(frozen=True)
class _Done:
    """What became of a job; `smallest` as in `Notes`."""

    count: int
    rejected: list[tuple[str, str]]
    smallest: dict[str, str | int]


def parse_options(text: str, workers: int | None = None) -> "PipelineOptions":
    """Beam's options from "runner=DataflowRunner,project=...", as `tfds build` takes them.

    Args:
      text: Without a runner, processes of this machine do the work.
      workers: How many of these; None for one a core.

    Raises:
      UsageError: Apache Beam is not installed, or no such runner.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UsageError(
            f"--beam needs Apache Beam ({error}): pip install 'fundus-vae[beam]'"
        ) from error
    flags = [f"--{option.strip().removeprefix('--')}" for option in text.split(",") if option]
    runner = [flag.partition("=")[2] for flag in flags if flag.startswith("--runner=")]
    if not runner:
        # The engine of the DirectRunner, which would first try to download another one.
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
      shards: Per split, the examples of each shard and the file they go to.
      writer: Turns examples into a file; given to every worker.
      notes: Receives what the workers noted.
      runner: Beam's runner; None for that of the options.
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
    except Exception as error:  # Every runner has its own.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise DataError(f"the Beam pipeline failed: {reason}") from error

    lengths: dict[str, list[int]] = {}
    for split, files in names.items():
        for file in files:
            done = _Done(**json.loads(_result(file).read_bytes()))
            lengths.setdefault(split, []).append(done.count)
            notes.merge([tuple(pair) for pair in done.rejected], done.smallest)
    shutil.rmtree(folder)
    if len(notes.rejected) > notes.limit * notes.total:
        raise TooManyRejectedError(notes.rejected, notes.total, notes.limit)
    return lengths


def _run(file: str) -> None:
    """Does the job in a file, on a worker."""
    job: _Job = pickle.loads(Path(file).read_bytes())
    count = 0
    try:
        with replacing(job.path) as unfinished:
            count = job.writer.write(examples=job.shard(), path=unfinished)
        records.write_index(job.path)
    except TooManyRejectedError:
        pass  # An error would make the runner try again. The build ends when all jobs are done.
    done = _Done(count, job.shard.notes.rejected, job.shard.notes.smallest)
    write_beside(_result(file), json.dumps(dataclasses.asdict(done)).encode())


def _result(file: str) -> Path:
    return Path(file).with_suffix(".json")
