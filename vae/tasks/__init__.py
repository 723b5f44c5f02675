"""Tasks: one module per product. The training loop uses a product only through its task.

`vae.tasks.task.Task` is the interface. `config.task` names a module, whose `TASK` is the class.
"""

import importlib

from ml_collections import ConfigDict

from vae.data.errors import UsageError
from vae.tasks.task import Task


def task_class(config: ConfigDict) -> type[Task]:
    """Returns the class of a config's task.

    Raises:
      UsageError: `config.task` does not name a module with a `TASK`.
    """
    name = config.get("task", "")
    try:
        return importlib.import_module(name).TASK
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"config: task={name!r} is no module with a TASK ({error}); expected"
            " 'vae.tasks.autoencoding', 'vae.tasks.enhancement' or 'vae.tasks.prior'"
        ) from error


def task_of(config: ConfigDict) -> Task:
    """Returns the task of a config without reading any data."""
    return task_class(config)(config)
