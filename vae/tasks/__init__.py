"""One module a product: what the training loop needs to know of it, and the loop knows no other.

`vae.tasks.task.Task` is the interface. `config.task` names the module, whose `TASK` is the class.
"""

import importlib

from ml_collections import ConfigDict

from vae.data.errors import UsageError
from vae.tasks.task import Task


def task_class(config: ConfigDict) -> type[Task]:
    """The class of a config's task.

    Raises:
      UsageError: `config.task` names no module with a task.
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
    """The task of a config; nothing is read yet."""
    return task_class(config)(config)
