"""A run from its config to its table: this reads top to bottom."""

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
from data.errors import DataError, FundusError, UsageError
from data.pipeline import Dataset, first_tiles, open_dataset, train_batches
from vae.training.checkpoint import Checkpoints
from vae.training.config import validate
from vae.training.log import Clock, RunLog, console_line
from vae.training.saved import CHECKPOINTS, read_model, write_config
from vae.training.sharding import local_rows, make_mesh, put_batch, tree_sharding
from vae.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    pca_of_training_tiles,
)
from vae.training.steps import make_train_step

OWN_PHOTOGRAPHS = """
next, with a folder of your own photographs (its subfolders are the labels):
  fundus-vae make-tiles --photographs PHOTOGRAPHS --out runs/tiles
  fundus-vae build --tiles runs/tiles --data_dir runs/dataset
  python run_experiment.py --config=configs/fundus256.py --config.data.dir=runs/dataset \\
    --workdir=runs/mine --config.data.crop=128 --config.batch_size=8 \\
    --config.train.steps=2000 --config.train.max_minutes=20"""

# Steps in flight: enough to keep a device busy, few enough to bound the batches held there.
IN_FLIGHT = 2
PROFILED_STEPS = (10, 15)


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
    _check_splits(config, dataset)
    about = {
        "fingerprint": dataset.fingerprint,
        "model": _plain(config.model),
        "version": vae.__version__,
        "command": shlex.join(sys.argv),
    }

    # ---- State: the newest checkpoint, or step 0 ------------------------------------------------
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    abstract = abstract_state(config)
    sharding = tree_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.train.keep_checkpoints)
    start = checkpoints.latest_step()
    if start is None:
        state, start = _start(config, dataset, sharding), 0
        _say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
        _check_same_run(checkpoints.about(start), about, workdir)
        state = checkpoints.restore(start, _with_sharding(abstract, sharding))
        _say(f"continuing from checkpoint {start} of {workdir}")
    if jax.process_index() == 0:
        write_config(workdir, config)

    # ---- The loop: evaluate, save, next batch, step ---------------------------------------------
    step_fn = make_train_step(config, mesh, sharding)
    batches = train_batches(
        dataset,
        size=config.data.size,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=local_rows(mesh, config.batch_size),
        start_step=start,
        threads=config.data.threads or None,
    )
    log = RunLog(workdir, start, config.train.tensorboard)
    clock = Clock(config.batch_size, config.train.steps)
    pending: deque[tuple[int, dict[str, Any], int]] = deque()
    deadline = time.monotonic() + 60 * config.train.max_minutes
    profile = _Profile(workdir, start) if config.train.profile else None
    stop = StopSignals()

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
            signalled = stop.received
            leave = done or out_of_time or signalled
            if config.eval.every and step % config.eval.every == 0 and not leave:
                read_pending(keep=0)
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
            images = put_batch(mesh, {"image": batch["image"]})["image"]
            state, metrics = step_fn(state, images)
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
    if _plain(saved.config.model) != _plain(config.model):
        raise DataError(
            f"{workdir} holds the model {_plain(saved.config.model)}, the config asks for "
            f"{_plain(config.model)}; give the config the run was made with"
        )
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    shardings = tree_sharding(saved.variables, mesh, config.mesh.fsdp_min_size)
    variables = jax.device_put(saved.variables, shardings)
    dataset = open_data(config, workdir)
    evaluate_and_write(config, variables, dataset, mesh, workdir, step=saved.step)


def open_data(config: ConfigDict, workdir: epath.Path) -> Dataset:
    """The dataset of a config; the bundled sources are prepared in the workdir on first use."""
    if not config.data.source:
        if not config.data.dir:
            raise UsageError(
                "data.dir is empty; give --config.data.dir=DIR, made by `fundus-vae make-tiles` "
                "and `fundus-vae build`, or use a preset that brings its data: "
                "--config=configs/fundus256.py:demo"
            )
        return open_dataset(config.data.dir)
    from data import demo

    return open_dataset(demo.prepare(config.data.source, workdir / "data", config.data.size))


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them; the loop saves and leaves.

    Attributes:
      received: The signal's number, 0 while there was none. A second SIGINT interrupts at once.
    """

    def __init__(self):
        self.received = 0
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Profile:
    """Traces a few steps once everything is compiled."""

    def __init__(self, workdir: epath.Path, start: int):
        self._path = str(workdir / "profile")
        self._first, self._last = (start + steps for steps in PROFILED_STEPS)
        self._tracing = self._begun = False

    def after(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(self._path)
            self._tracing = self._begun = True
        elif step == self._last:
            self.close()

    def close(self) -> None:
        """Ends the trace, of fewer steps where the run ends first."""
        if not self._begun:
            _say(f"no profile: the run ended before step {self._first}")
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            _say(f"profile of steps {self._first} to {self._last} in {self._path}")


def _start(config: ConfigDict, dataset: Dataset, sharding: TrainState) -> TrainState:
    """Step 0: the PCA of the training tiles, or the model that `init_from` names."""
    if config.init_from:
        saved = read_model(config.init_from)
        if _plain(saved.config.model) != _plain(config.model):
            raise DataError(
                f"init_from={config.init_from} holds the model {_plain(saved.config.model)}, "
                f"the config asks for {_plain(config.model)}"
            )
        pca = jax.device_get(saved.variables["pca"]["fit"])
    else:
        tiles = first_tiles(
            dataset, size=config.data.size, seed=config.seed, count=config.data.pca_tiles
        )
        pca = pca_of_training_tiles(config, tiles)
    state = jax.jit(lambda fit: initial_state(config, fit), out_shardings=sharding)(pca)
    if config.init_from:
        params = jax.device_put(saved.variables["params"], sharding.params)
        copy = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree))
        state = state.replace(params=params, ema_params=copy(params))
    return state


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


def _check_splits(config: ConfigDict, dataset: Dataset) -> None:
    for split, key in (("train", "the training"), (config.eval.split, "eval.split")):
        if not dataset.counts.get(split):
            raise DataError(
                f"{dataset.path} has no tiles for {key} split {split!r}, it has {dataset.counts}; "
                "build it with such a share of the patients, or set --config.eval.split"
            )


def _check_same_run(saved: dict, now: dict, workdir: epath.Path) -> None:
    """Refuses to continue with another model or other data than the checkpoint's."""
    for key, what in (("model", "model"), ("fingerprint", "dataset fingerprint")):
        if saved.get(key) != now[key]:
            raise DataError(
                f"the checkpoint in {workdir} belongs to the {what} {saved.get(key)}, this run has "
                f"{now[key]}; use another --workdir, or start from it with --config.init_from"
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


def _plain(config: ConfigDict) -> dict[str, Any]:
    """As JSON would give it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
