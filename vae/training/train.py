"""A run from its config to its table: this reads top to bottom."""

import functools
import shlex
import signal
import sys
import time
import zlib
from collections import deque
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

import vae
from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.exported import SavedModel
from vae.checkpoints.reading import CHECKPOINTS, read_model, variables_hash, write_config
from vae.data.errors import DataError, FundusError
from vae.data.pipeline import Dataset, open_dataset, paired, train_batches
from vae.training.checkpoint import Checkpoints
from vae.training.flow import label_numbers, make_encoder
from vae.training.log import Clock, RunLog, console_line
from vae.training.prior import for_latents, read_autoencoder
from vae.training.profile import Profile
from vae.training.resident import ResidentTiles
from vae.training.sharding import (
    largest_leaves,
    local_rows,
    make_mesh,
    put_batch,
    tree_sharding,
)
from vae.training.signals import StopSignals
from vae.training.start import (
    check_same_model,
    check_same_run,
    check_splits,
    open_data,
    plain,
    start_state,
)
from vae.training.state import TrainState, abstract_state
from vae.training.steps import make_train_step
from vae.training.validation import validate

OWN_PHOTOGRAPHS = """
next, with a folder of your own photographs (its subfolders are the labels):
  fundus-vae make-tiles --photographs PHOTOGRAPHS --out runs/tiles
  fundus-vae build --tiles runs/tiles --data_dir runs/dataset
  python run_experiment.py --config=configs/fundus256.py --config.data.dir=runs/dataset \\
    --workdir=runs/mine --config.data.crop=64 --config.batch_size=32 \\
    --config.train.steps=2000 --config.train.max_minutes=20"""

# Steps in flight: enough to keep a device busy, few enough to bound the batches held there.
IN_FLIGHT = 2


class NonFiniteLossError(FundusError):
    """The loss became infinite or NaN; nothing after it was saved."""


def train(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Trains, or continues the run in `workdir`, and closes with the evaluation.

    Raises:
      UsageError: The config cannot work.
      DataError: The data or a checkpoint is missing, damaged or of another run.
      NonFiniteLossError: Training diverged.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, with the state saved.
    """
    validate(config, jax.device_count())
    workdir = epath.Path(workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--workdir={workdir} cannot be made: {error.strerror or error}; give a folder that "
            "is there, or can be"
        ) from error

    # ---- Data -----------------------------------------------------------------------------------
    dataset = open_data(config, workdir)
    check_splits(config, dataset)
    masked = None
    if config.data.masked_dir:
        masked = open_dataset(config.data.masked_dir, cache_dir=config.data.cache_dir)
    autoencoder = None
    if config.model.architecture == PRIOR:
        autoencoder = read_autoencoder(config)
        config = for_latents(config, autoencoder, dataset)
    about = {
        "fingerprint": dataset.fingerprint,
        "masked_fingerprint": masked.fingerprint if masked else None,
        "model": plain(config.model),
        "autoencoder": autoencoder and variables_hash(autoencoder.variables),
        "version": vae.__version__,
        "command": shlex.join(sys.argv),
    }

    # ---- State: the newest checkpoint, or step 0 ------------------------------------------------
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    abstract = abstract_state(config)
    sharding = tree_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    if config.mesh.fsdp > 1:
        _say(largest_leaves(abstract, sharding))
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.train.keep_checkpoints)
    start = checkpoints.latest_step()
    if start is None:
        state, start = start_state(config, dataset, sharding, autoencoder), 0
        _say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
        check_same_run(checkpoints.about(start), about, workdir)
        state = checkpoints.restore(start, _with_sharding(abstract, sharding))
        _say(f"continuing from checkpoint {start} of {workdir}")
    if jax.process_index() == 0:
        write_config(workdir, config)

    # ---- The loop: evaluate, save, next batch, step ---------------------------------------------
    step_fn = make_train_step(config, mesh, sharding)
    encode = None if autoencoder is None else make_encoder(config, mesh, autoencoder)
    enhancing = config.model.architecture == ENHANCER
    rows = local_rows(mesh, config.batch_size)
    read = functools.partial(
        train_batches,
        size=config.data.size,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=rows,
        start_step=start,
        threads=config.data.threads or None,
        context=enhancing,
        labels=autoencoder is not None,
    )
    resident = ResidentTiles(config, dataset, mesh) if config.data.on_device else None
    if resident is not None:
        batches = resident.batches(rows, start)
        _say(f"{len(resident.images)} tiles, {resident.images.nbytes / 1e9:.1f} GB, on each device")
    else:
        batches = read(dataset) if masked is None else paired(read(dataset), read(masked))
    log = RunLog(workdir, start, config.train.tensorboard)
    clock = Clock(config.batch_size, config.train.steps)
    pending: deque[tuple[int, dict[str, Any], int]] = deque()
    deadline = time.monotonic() + 60 * config.train.max_minutes
    profile = Profile(workdir, start, _say) if config.train.profile else None
    stop = StopSignals()

    def place(batch: dict[str, np.ndarray], step: int) -> jax.Array | dict[str, jax.Array]:
        """What the step takes of this process's rows, over all devices."""
        if resident is not None:
            return resident.take(batch["number"])
        if encode is not None:
            names = label_numbers(batch["label"], config.model.labels)
            placed = put_batch(mesh, {"image": batch["image"], "label": names})
            return encode(placed["image"], step) | {"label": placed["label"]}
        inputs = ("image", "view", "place") if enhancing else ("image",)
        placed = put_batch(mesh, {name: batch[name] for name in inputs})
        return placed if enhancing else placed["image"]

    def read_pending(keep: int) -> None:
        """Fetches the metrics of steps taken, all but the newest `keep`, and logs what is due."""
        while len(pending) > keep:
            step, metrics, tiles = pending.popleft()
            clock.stepped()
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])  # waits for the step
            if not np.isfinite([loss, norm]).all():
                log.write(step, jax.device_get(metrics))
                raise NonFiniteLossError(
                    f"the loss of step {step} is {loss}, its gradient's norm {norm}; the last good "
                    f"checkpoint of {workdir} is {checkpoints.latest_step()}: lower "
                    f"optimizer.learning_rate={config.optimizer.learning_rate} and continue"
                )
            if (step + 1) % config.train.log_every == 0 or step + 1 == config.train.steps:
                figures = jax.device_get(metrics) | {"tiles_crc32": tiles} | clock.read()
                log.write(step, figures)
                _say(console_line(step + 1, config.train.steps, figures, clock.eta(step + 1)))

    def save(step: int) -> None:
        read_pending(keep=0)
        checkpoints.save(step, state, about)

    step = start
    try:
        while True:
            done = step >= config.train.steps
            out_of_time = config.train.max_minutes > 0 and _agreed(time.monotonic() > deadline)
            signalled = stop.at(step)
            leave = done or out_of_time or signalled
            if config.eval.every and step % config.eval.every == 0 and not leave:
                read_pending(keep=0)
                if enhancing:
                    save(step)
                    _scheduled_enhancement(config, read_model(workdir), dataset, step, log)
                elif autoencoder is not None:
                    save(step)
                    _scheduled_samples(read_model(workdir), autoencoder, step, log)
                else:
                    _scheduled_evaluation(config, state, dataset, mesh, step, log)
                clock.restart()
            if leave or step % config.train.checkpoint_every == 0:
                save(step)
                clock.restart()
            if leave:
                break
            waiting = time.perf_counter()
            batch = next(batches)
            clock.waited(time.perf_counter() - waiting)
            state, metrics = step_fn(state, place(batch, step))
            pending.append((step, metrics, zlib.crc32("\n".join(batch["tile_id"]).encode())))
            read_pending(keep=IN_FLIGHT)
            step += 1
            if profile is not None:
                profile.after(step)
    finally:
        if profile is not None:
            profile.close()
        log.close()
        checkpoints.close()
        stop.restore()
    if signalled:
        name = signal.Signals(signalled).name
        _say(f"{name}: saved checkpoint {step} in {workdir}; the same command continues")
        raise SystemExit(128 + signalled)
    if out_of_time and not done:
        _say(f"train.max_minutes={config.train.max_minutes} are over at step {step} of "
             f"{config.train.steps}; the same command continues")  # fmt: skip

    # ---- The table ------------------------------------------------------------------------------
    if enhancing:
        _enhancement_table(config, dataset, workdir)
        return
    if autoencoder is not None:
        _samples_table(config, autoencoder, dataset, workdir)
        return
    from vae.evaluation.run import evaluate_and_write

    evaluate_and_write(config, state.variables, dataset, mesh, workdir, step=step)
    if config.data.source:
        _say(OWN_PHOTOGRAPHS)


def evaluate_workdir(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Evaluates the newest checkpoint of a run over the whole of `config.eval.split`."""
    from vae.evaluation.run import evaluate_and_write

    validate(config, jax.device_count())
    workdir = epath.Path(workdir).absolute()
    saved = read_model(workdir)
    if config.model.architecture == PRIOR:
        autoencoder, dataset = read_autoencoder(config), open_data(config, workdir)
        config = for_latents(config, autoencoder, dataset)
        check_same_model(saved, config, str(workdir))
        _samples_table(config, autoencoder, dataset, workdir)
        return
    check_same_model(saved, config, str(workdir))
    if config.model.architecture == ENHANCER:
        _enhancement_table(config, open_data(config, workdir), workdir)
        return
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    shardings = tree_sharding(saved.variables, mesh, config.mesh.fsdp_min_size)
    variables = jax.device_put(saved.variables, shardings)
    dataset = open_data(config, workdir)
    evaluate_and_write(config, variables, dataset, mesh, workdir, step=saved.step)


def _enhancement_table(config: ConfigDict, dataset: Dataset, workdir: epath.Path) -> None:
    """The closing table of an enhancer: on one process, of the newest checkpoint."""
    from vae.evaluation.enhancement import evaluate_enhancer

    saved = read_model(workdir)  # by all processes: its arrays may lie on several
    if jax.process_index() == 0:
        evaluate_enhancer(saved, dataset, split=config.eval.split, out=workdir)


def _scheduled_enhancement(config, saved, dataset, step, log) -> None:
    from vae.evaluation.enhancement import quick_figures

    figures = quick_figures(saved, dataset, config.eval.split, config.eval.limit)
    log.write(step, {f"eval_{name}": value for name, value in figures.items()})
    _say(
        f"step {step}  {config.eval.split}, degraded: {figures['psnr_before']:.2f} -> "
        f"{figures['psnr']:.2f} dB, SSIM {figures['ssim_before']:.4f} -> {figures['ssim']:.4f}, "
        f"clean {figures['ssim_clean']:.4f}  ({figures['tiles']} tiles)"
    )


def _samples_table(
    config: ConfigDict, autoencoder: SavedModel, dataset: Dataset, workdir: epath.Path
) -> None:
    """The closing table of a prior: on one process, of the newest checkpoint."""
    from vae.evaluation.samples import evaluate_prior

    saved = read_model(workdir)
    if jax.process_index() == 0:
        evaluate_prior(saved, autoencoder, dataset, count=config.eval.limit, out=workdir)


def _scheduled_samples(saved, autoencoder, step, log) -> None:
    from vae.evaluation.samples import sheet

    log.picture(step, "samples", sheet(saved, autoencoder))


def _scheduled_evaluation(config, state, dataset, mesh, step, log) -> None:
    from vae.evaluation.run import evaluate_and_draw

    evaluation, figure = evaluate_and_draw(
        config, state.variables, dataset, mesh, limit=config.eval.limit
    )
    log.write(step, {f"eval_{name}": value for name, value in evaluation.means.items()})
    log.picture(step, f"eval_{config.eval.split}", figure)
    means = evaluation.means
    _say(
        f"step {step}  {config.eval.split}: SSIM {means['ssim']:.4f}  {means['psnr']:.2f} dB  "
        f"KL {means['kl_bits'] / 8000:.2f} kB a tile  ({evaluation.counts['tiles']} tiles)"
    )


def _with_sharding(abstract: TrainState, sharding: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        sharding,
    )


def _agreed(flag: bool) -> bool:
    """The first process's word, so that all of them stop at the same step."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
