"""SIGTERM and SIGINT handling: the run saves a checkpoint and exits."""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Records SIGTERM and SIGINT instead of terminating.

    A single process handles both signals itself. Several processes may get SIGTERM at different
    steps, or only one of them gets it. Then JAX's coordination service handles SIGTERM: it chooses
    a step that no process has begun, at which all stop.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._received = 0
        self._before = {}
        if not self._several:
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in numbers}

    def at(self, step: int) -> int:
        """Returns the signal for which to stop before this step, or 0 to continue.

        Every process calls it before every step.
        """
        if self._several:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one interrupts at once
