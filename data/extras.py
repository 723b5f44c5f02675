"""Packages of optional extras, checked before a command begins its work."""

import importlib

from vae.data.errors import UsageError


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Imports the modules that an extra of the package installs.

    Args:
      extra: Name of the extra in setup.cfg.
      what: The command or option that needs it, for the error.
      modules: Names of the modules.

    Raises:
      UsageError: A module is missing; the message names the extra.
    """
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{error}: {what} needs `pip install 'fundus-vae[{extra}]'`") from error
