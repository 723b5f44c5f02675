"""Number of CPU cores available to this process."""

import os


def available_cores() -> int:
    """Returns the number of cores this process may use; containers often grant only a part."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
