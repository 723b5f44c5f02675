"""The log of a run: console lines, metrics.jsonl, TensorBoard events."""

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vae.data.files import write_beside

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class RunLog:
    """Writes the metrics of a run; on processes other than the first it does nothing.

    A line holds metrics of a training step, or of an evaluation of the state before that step. A
    continued run first removes the lines from its start step on, so no step is logged twice.
    """

    def __init__(self, workdir: epath.PathLike, start_step: int, tensorboard: bool):
        self._active = jax.process_index() == 0
        self._events = None
        if not self._active:
            return
        workdir = epath.Path(workdir)
        self._path = workdir / METRICS
        _drop_from(self._path, start_step)
        self._file = self._path.open("a")
        if tensorboard:
            self._events = _event_writer(workdir / TENSORBOARD)

    def write(self, step: int, scores: Mapping[str, Any]) -> None:
        """Appends the metrics of a step: scalars and vectors, numpy arrays or Python numbers."""
        if not self._active:
            return
        line = {"step": step} | {name: _plain(value) for name, value in scores.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._events is not None:
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            numbers.pop("step")
            self._events.write_scalars(step, numbers)

    def first_and_last(self, name: str) -> tuple[float, float] | None:
        """Returns a metric at step 0 and in the last line that has it; None without either."""
        if not self._active:
            return None
        lines = map(json.loads, self._path.read_text().splitlines())
        found = [(line["step"], line[name]) for line in lines if name in line]
        return (found[0][1], found[-1][1]) if len(found) > 1 and found[0][0] == 0 else None

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3], to the TensorBoard events."""
        if self._active and self._events is not None:
            self._events.write_images(step, {name: image[None]})

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._active:
            self._file.close()
            if self._events is not None:
                self._events.close()


class Clock:
    """Measures tiles per second, the time spent waiting for input, and the remaining time."""

    def __init__(self, batch_size: int, last_step: int):
        self._batch_size, self._last_step = batch_size, last_step
        self._rate = 0.0
        self.restart()

    def restart(self) -> None:
        """Starts a new interval; called after evaluations and saves, which are not training."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float) -> None:
        """Adds a wait for the next batch, in seconds."""
        self._waited += seconds

    def stepped(self) -> None:
        """Counts a finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Ends the interval and returns its tiles_per_s and input_wait (fraction of the time)."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self._rate = self._steps / seconds
        scores = {
            "tiles_per_s": self._rate * self._batch_size,
            "input_wait": self._waited / seconds,
        }
        self.restart()
        return scores

    def eta(self, step: int) -> str:
        """Returns the remaining time after a step, at the speed of the last interval."""
        if not self._rate:
            return "-"
        seconds = round((self._last_step - step) / self._rate)
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds % 60:02}s"


def console_line(
    step: int, steps: int, scores: Mapping[str, Any], names: Sequence[str], eta: str
) -> str:
    """Formats one line of progress; `names` are the metrics of `scores` to print."""
    parts = [f"step {step:{len(str(steps))}}/{steps}"]
    parts += [f"{name} {scores[name]:.4g}" for name in ("loss", *names, "grad_norm")]
    parts.append(f"{scores['tiles_per_s']:.1f} tiles/s")
    parts.append(f"input wait {scores['input_wait']:.1%}")
    parts.append(f"eta {eta}")
    return "  ".join(parts)


def _plain(value: Any) -> Any:
    value = np.asarray(value)
    return value.tolist() if value.dtype.kind in "iufb" else str(value)


def _drop_from(path: epath.Path, step: int) -> None:
    """Removes lines of `step` and later, and incomplete lines of a killed run."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_beside(path, "".join(kept).encode())


def _event_writer(directory: epath.Path):
    """Returns clu's writer of TensorBoard events, or None if its dependencies are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tensorboard")):
        print("no TensorBoard events: they need the extra [tf]", flush=True)
        return None
    from clu import metric_writers

    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))
