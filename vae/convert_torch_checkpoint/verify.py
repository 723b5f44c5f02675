"""Verification of a conversion: both frameworks on the same images."""

import dataclasses

import jax
import numpy as np
import torch

from vae.convert_torch_checkpoint.table import PREFIX
from vae.convert_torch_checkpoint.torch_module import PublishedVAE
from vae.data.synthetic import fundus_photograph
from vae.models import FundusVAE

TILE_COUNT = 4
# Tolerances for float32 sums in another order: for mean and log-variance relative to their largest
# value, for the reconstruction in values of [0, 1].
POSTERIOR_TOLERANCE = 1e-3
IMAGE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest absolute differences, and the largest absolute values in PyTorch.

    Attributes:
      mean, log_var: (difference, value) of the posterior.
      image: (difference, value) of the reconstruction in [0, 1].
    """

    mean: tuple[float, float]
    log_var: tuple[float, float]
    image: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Returns True if all three are within their tolerances; False for NaN."""
        relative = [
            difference <= POSTERIOR_TOLERANCE * value
            for difference, value in (self.mean, self.log_var)
        ]
        return all(relative) and self.image[0] <= IMAGE_TOLERANCE


def compare(
    state: dict[str, torch.Tensor], variables: dict, model: FundusVAE, seed: int = 0
) -> Difference:
    """Encodes and decodes synthetic fundus photographs of the model's size in both frameworks.

    Args:
      state: The source's tensors by key without prefix; may be memory-mapped.
      variables: The converted variables.
      model: Model of the same sizes.
      seed: Seed of the photographs.
    """
    side = model.image_size
    photographs = np.stack([fundus_photograph((seed, i), side) for i in range(TILE_COUNT)])
    tiles = np.ascontiguousarray(np.moveaxis(photographs, -1, 1), np.float32) / 255
    with torch.device("meta"):
        twin = PublishedVAE(model)
    floats = {
        PREFIX + key: tensor if key.endswith("num_batches_tracked") else tensor.float()
        for key, tensor in state.items()
    }
    twin.load_state_dict(floats, strict=True, assign=True)
    twin.eval()
    with torch.inference_mode():
        mean, log_var = twin.encode(torch.from_numpy(tiles))
        image = twin.decode(mean)
    theirs = [output.numpy() for output in (mean, log_var, image.permute(0, 2, 3, 1))]

    @jax.jit
    def run(variables, x):
        posterior = model.apply(variables, x, method="encode")
        image = model.apply(variables, posterior.mean, method="decode")
        return posterior.mean, posterior.log_var, (image + 1) / 2

    ours = run(variables, 2 * tiles.transpose(0, 2, 3, 1) - 1)
    return Difference(
        *(
            (float(np.abs(a - b).max()), float(np.abs(b).max()))
            for a, b in zip(jax.device_get(ours), theirs, strict=True)
        )
    )
