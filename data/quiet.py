"""Keeps the libraries that decode pictures from writing to the standard error.

Their complaints on a file are either the reason of its error or of no use to a person. The
filters are set once: `warnings.catch_warnings` is not safe where several threads decode.
"""

import logging
import warnings


def silence() -> None:
    """Mutes the warnings and the loggers of Pillow, pydicom and tifffile."""
    for library in ("PIL", "pydicom", "tifffile", "imagecodecs"):
        logger = logging.getLogger(library)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")
