"""`encode` and `decode`."""


def add(commands) -> None:
    """Registers the commands."""
