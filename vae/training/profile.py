"""A profiler trace of a few steps, for `tensorboard` or `xprof`."""

from collections.abc import Callable

import jax
from etils import epath

PROFILED_STEPS = (10, 15)


class Profile:
    """Traces `PROFILED_STEPS` after the start, when compilation is finished."""

    def __init__(self, workdir: epath.Path, start: int, say: Callable[[str], None]):
        self._say = say
        self._path = str(workdir / "profile")
        self._first, self._last = (start + steps for steps in PROFILED_STEPS)
        self._tracing = self._begun = False

    def after(self, step: int) -> None:
        """Starts or ends the trace when `step` steps are done."""
        if step == self._first:
            jax.profiler.start_trace(self._path)
            self._tracing = self._begun = True
        elif step == self._last:
            self.close()

    def close(self) -> None:
        """Ends the trace; it has fewer steps if the run ends first."""
        if not self._begun:
            self._say(f"no profile: the run ended before step {self._first}")
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            self._say(f"profile of steps {self._first} to {self._last} in {self._path}")
