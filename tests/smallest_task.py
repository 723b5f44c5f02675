"""A minimal fourth product: it learns the mean colour of tiles by gradient descent."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae.configs.fundus256 import get_config as autoencoder_config
from vae.metrics import to_float
from vae.multihost import say
from vae.sharding import put_batch
from vae.tasks.task import Feed, Task, read_batches


def get_config() -> ConfigDict:
    config = autoencoder_config("smoke")
    del config.model, config.loss
    config.task = "smallest_task"
    config.model = ConfigDict({"channels": 3})
    config.optimizer.name = "adam"
    return config


class MeanColour(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, images):
        colour = self.param("colour", nn.initializers.zeros, (self.channels,))
        return jnp.square(images - colour).mean()


class SmallestTask(Task):
    @property
    def model(self):
        return MeanColour(self.config.model.channels)

    @classmethod
    def reference(cls, config):
        return get_config()

    def check(self, problems):
        problems.require(self.config.model.channels == 3, "model.channels must be 3")

    def fresh_variables(self, start=None):
        return self.model.init(jax.random.key(self.config.seed), jnp.zeros((1, 8, 8, 3)))

    def feed(self, dataset, mesh, start):
        batches = read_batches(self.config, dataset, mesh, start)
        return Feed(batches, lambda batch, step: put_batch(mesh, {"image": batch["image"]}))

    def example(self, batch, rows, step):
        return to_float(batch["image"])

    def loss(self, params, fixed, batch_stats, example, rows, key):
        loss = self.model.apply({"params": params}, example)
        return loss, ({"nll": loss}, batch_stats)

    def evaluate(self, variables, step, dataset, mesh, workdir, log):
        log.write(step, {"eval_colour": variables["params"]["colour"].mean()})

    def report(self, variables, step, dataset, mesh, workdir):
        say(f"colour {variables['params']['colour'].mean():.3f}")


TASK = SmallestTask
