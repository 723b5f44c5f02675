"""Signals that ask a run to stop."""

import signal
from typing import Any


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
