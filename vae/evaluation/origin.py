"""Where figures come from."""

import datetime
import shlex
import sys
from pathlib import Path

import vae


def origin() -> dict[str, str]:
    """What every file of figures says of its making: `version`, `command` and `date` (UTC)."""
    return {
        "version": vae.__version__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
