"""`reconstruct`: tiles and photographs through a model and back."""


def add(commands) -> None:
    """Registers the commands."""
