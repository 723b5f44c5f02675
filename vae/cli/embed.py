"""`embed`: a map of latents."""


def add(commands) -> None:
    """Registers the commands."""
