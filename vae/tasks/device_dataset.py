"""A dataset that fits into a device's memory and is copied there once.

A fast device takes thousands of tiles a second, but a CPU core decodes only some hundreds.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.data.in_memory import numbered_batches, whole_split
from vae.data.pipeline import Dataset
from vae.sharding import batch_sharding, put_batch, replicated


class DeviceDataset:
    """All training tiles of a dataset, on every device of a mesh.

    Attributes:
      images: uint8 [N, S, S, 3].
    """

    def __init__(self, config: ConfigDict, dataset: Dataset, mesh: Mesh):
        images, self._tile_ids = whole_split(
            dataset, size=config.data.size, threads=config.data.threads or None
        )
        self._order = dataset.order("train", config.seed, config.data.balance)
        self._config, self._mesh = config, mesh
        self.images = jax.make_array_from_process_local_data(replicated(mesh), images)
        self._take = jax.jit(
            lambda images, number: images[number], out_shardings=batch_sharding(mesh)
        )

    def batches(self, rows: Sequence[int], start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of `train_batches`: `number` and `tile_id` of this process's rows."""
        return numbered_batches(
            self._tile_ids,
            self._order,
            batch_size=self._config.batch_size,
            rows=rows,
            start_step=start_step,
        )

    def take(self, number: np.ndarray) -> jax.Array:
        """Gathers the global batch, uint8 [B, S, S, 3], from the numbers of this process's rows."""
        return self._take(self.images, put_batch(self._mesh, {"number": number})["number"])
