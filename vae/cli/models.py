"""`evaluate`, `info` and `export`."""


def add(commands) -> None:
    """Registers the commands."""
