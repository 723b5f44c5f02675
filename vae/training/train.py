"""The training loop: a run from its config to its final evaluation."""

import signal
import time
import zlib
from collections import deque
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from vae.checkpoints.loading import CHECKPOINTS, write_config
from vae.checkpoints.provenance import provenance
from vae.data.errors import DataError, FundusError
from vae.data.files import make_folder, write_beside
from vae.multihost import agreed, say
from vae.sharding import largest_leaves, make_mesh, tree_sharding
from vae.tasks import task_of
from vae.tasks.task import plain
from vae.training.checkpoint import Checkpoints
from vae.training.initialization import (
    check_same_run,
    check_splits,
    open_data,
    state_from_variables,
)
from vae.training.log import Clock, RunLog, console_line
from vae.training.profile import Profile
from vae.training.signals import StopSignals
from vae.training.steps import make_train_step
from vae.training.train_state import TrainState, abstract_state
from vae.training.validation import validate

# Steps in flight: enough to keep the device busy; each holds a batch in device memory.
IN_FLIGHT = 2
PARAMETERS = "parameters.txt"


class NonFiniteLossError(FundusError):
    """The loss or the gradient norm is infinite or NaN; no later state was saved."""


def train(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Trains, or continues the run in `workdir`, and then runs the final evaluation.

    Raises:
      UsageError: The config is invalid.
      DataError: The data or a checkpoint is missing, damaged or of another run.
      NonFiniteLossError: Training diverged.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, with the state saved.
    """
    deadline = time.monotonic() + 60 * config.train.max_minutes
    validate(config, jax.device_count())
    workdir = epath.Path(workdir).absolute()
    make_folder(workdir, "--workdir")

    # ---- Data -----------------------------------------------------------------------------------
    dataset = open_data(config, workdir)
    check_splits(config, dataset)
    task = task_of(config)
    task.open(dataset)
    config = task.config
    made = {
        "model": plain(config.model),
        "fingerprint": dataset.fingerprint,
        **task.identity,
        **provenance(),
    }

    # ---- State: the newest checkpoint, or step 0 ------------------------------------------------
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    abstract = abstract_state(task)
    sharding = tree_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    if config.mesh.fsdp > 1:
        say(largest_leaves(abstract, sharding))
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.train.keep_checkpoints)
    start = checkpoints.latest_step()
    if start is None:
        variables = task.variables(dataset, sharding.variables)
        state, start = state_from_variables(task, variables, sharding), 0
        _list_parameters(state.params, workdir / PARAMETERS)
    else:
        check_same_run(checkpoints.provenance(start), made, workdir)
        state = checkpoints.restore(start, _with_sharding(abstract, sharding))
        say(f"continuing from checkpoint {start} of {workdir}")
    if jax.process_index() == 0:
        write_config(workdir, config)

    # ---- The loop: evaluate, save, next batch, step ---------------------------------------------
    step_fn = make_train_step(task, mesh, sharding)
    feed = task.feed(dataset, mesh, start)
    log = RunLog(workdir, start, config.train.tensorboard)
    clock = Clock(config.batch_size, config.train.steps)
    pending: deque[tuple[int, dict[str, Any], int]] = deque()
    profile = Profile(workdir, start, say) if config.train.profile else None
    stop = StopSignals()

    def read_pending(keep: int) -> None:
        """Fetches and logs the metrics of all steps but the newest `keep`."""
        while len(pending) > keep:
            step, metrics, tiles = pending.popleft()
            clock.stepped()
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])  # waits for the step
            if not np.isfinite([loss, norm]).all():
                log.write(step, jax.device_get(metrics))
                raise NonFiniteLossError(
                    f"the loss of step {step} is {loss}, the gradient norm {norm}; the last good "
                    f"checkpoint of {workdir} is {checkpoints.latest_step()}: lower "
                    f"optimizer.learning_rate={config.optimizer.learning_rate} and continue"
                )
            if (step + 1) % config.train.log_every == 0 or step + 1 == config.train.steps:
                scores = jax.device_get(metrics) | {"tiles_crc32": tiles} | clock.read()
                log.write(step, scores)
                say(
                    console_line(
                        step + 1,
                        config.train.steps,
                        scores,
                        task.console_metrics,
                        clock.eta(step + 1),
                    )
                )

    def save(step: int) -> None:
        read_pending(keep=0)
        checkpoints.save(step, state, made)

    step = start
    try:
        while True:
            done = step >= config.train.steps
            out_of_time = config.train.max_minutes > 0 and agreed(time.monotonic() > deadline)
            signalled = stop.at(step)
            leave = done or out_of_time or signalled
            every, at_end = config.eval.every, leave and not signalled and task.quality
            if every and (at_end or (not leave and step % every == 0)):
                read_pending(keep=0)
                if task.evaluates_checkpoint:
                    save(step)
                task.evaluate(state.variables, step, dataset, mesh, workdir, log)
                clock.restart()
            if leave or step % config.train.checkpoint_every == 0:
                save(step)
                clock.restart()
            if leave:
                break
            waiting = time.perf_counter()
            batch = next(feed.batches)
            clock.waited(time.perf_counter() - waiting)
            state, metrics = step_fn(state, feed.to_device(batch, step))
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
        say(f"{name}: saved checkpoint {step} in {workdir}; the same command continues")
        raise SystemExit(128 + signalled)
    if out_of_time and not done:
        say(f"train.max_minutes={config.train.max_minutes} are over at step {step} of "
             f"{config.train.steps}; the final evaluation follows, and the same command continues "
             "the training")  # fmt: skip

    # ---- The final evaluation -------------------------------------------------------------------
    if before_and_after := log.first_and_last(task.quality):
        before, after = before_and_after
        if after < before:
            rate = "optimizer.init_from_factor" if config.init_from else "optimizer.learning_rate"
            say(f"warning: the model is worse than at step 0 ({task.quality} {before:.4f} then, "
                f"{after:.4f} now); train for more steps or lower {rate}")  # fmt: skip
    task.report(state.variables, step, dataset, mesh, workdir)


def evaluate_workdir(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Repeats the final evaluation for the newest checkpoint of a run; raises as `train` does."""
    validate(config, jax.device_count())
    workdir = epath.Path(workdir).absolute()
    if not (workdir / CHECKPOINTS).exists():
        raise DataError(f"{workdir} has no checkpoints; expected the workdir of a training run")
    dataset = open_data(config, workdir)
    task = task_of(config)
    task.open(dataset)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    abstract = abstract_state(task)
    sharding = tree_sharding(abstract, mesh, config.mesh.fsdp_min_size)
    checkpoints = Checkpoints(workdir / CHECKPOINTS)
    try:
        step = checkpoints.require_step()
        check_same_run(checkpoints.provenance(step), {"model": plain(task.config.model)}, workdir)
        variables = checkpoints.restore_variables(step, _with_sharding(abstract, sharding))
    finally:
        checkpoints.close()
    task.report(variables, step, dataset, mesh, workdir)


def _list_parameters(params: Any, path: epath.Path) -> None:
    """Writes the table of parameters and says their number."""
    if jax.process_index() > 0:
        return
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_beside(path, f"{table}\n".encode())
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    say(f"{count:,} parameters, listed in {path}")


def _with_sharding(abstract: TrainState, sharding: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        sharding,
    )
