"""How many threads or processes are worth starting."""

import os


def available_cores() -> int:
    """Cores this process may use; containers and schedulers often grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
