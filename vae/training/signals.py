"""Signals that ask a run to stop: it saves and leaves."""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them.

    One process notes them itself. Of several, each may get SIGTERM at another step, or only one of
    them gets it: JAX's coordination service, which notes it then, names a step that none of them
    has begun, and all stop there.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._received = 0
        self._before = {}
        if not self._several:
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in numbers}

    def at(self, step: int) -> int:
        """The number of the signal to stop for before this step; 0 to go on.

        Every process asks before every step.
        """
        if self._several:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one interrupts at once
