"""A model from a path, for tiles and photographs as uint8 arrays."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.inference.windows import pad_to_factor, reconstruct_windows, window_side
from vae.metrics import to_float, to_uint8
from vae.models import Posterior
from vae.training.saved import SavedModel, read_model, variables_hash
from vae.training.state import make_model

# Tiles in a call; smaller numbers are padded to a power of two, so few shapes are ever compiled.
MAX_BATCH = 16


class Model:
    """A trained autoencoder.

    Attributes:
      saved: What was read: path, config, step, variables, latent statistics.
      downsample: f, pixels per latent position and axis.
      latent_channels: C.
    """

    def __init__(self, saved: SavedModel):
        self.saved = saved
        self._module = make_model(saved.config)
        self.downsample = self._module.downsample
        self.latent_channels = self._module.latent_channels
        self._encode, self._decode = _halves(self._module)

    @functools.cached_property
    def hash(self) -> str:
        """Names the model in everything made with it."""
        return variables_hash(self.saved.variables)

    def posterior(self, images: np.ndarray) -> Posterior:
        """q(z | x) of each image.

        Args:
          images: uint8 [N, H, W, 3], any N, H and W; sides not divisible by f are continued by
            their edge pixels.

        Returns:
          Mean and log-variance, numpy float32 [N, ceil(H/f), ceil(W/f), C].

        Raises:
          ValueError: Another shape or dtype.
        """
        _check(images, "images", np.uint8, "[N, H, W, 3] with values 0..255", 3)
        padded = [pad_to_factor(image, self.downsample) for image in images]
        height, width = (-(-side // self.downsample) for side in images.shape[1:3])
        if not padded:
            empty = np.zeros((0, height, width, self.latent_channels), np.float32)
            return Posterior(empty, empty.copy())
        encode = functools.partial(self._encode, self.saved.variables)
        return _in_batches(encode, np.stack(padded))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Posterior means: uint8 [N, H, W, 3] -> float32 [N, ceil(H/f), ceil(W/f), C]."""
        return self.posterior(images).mean

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents, float32 [N, h, w, C] -> images, uint8 [N, h*f, w*f, 3].

        Raises:
          ValueError: Another shape or dtype.
        """
        _check(latents, "latents", np.float32, "[N, h, w, C]", self.latent_channels)
        if not len(latents):
            _, height, width, _ = latents.shape
            f = self.downsample
            return np.zeros((0, height * f, width * f, 3), np.uint8)
        return _in_batches(functools.partial(self._decode, self.saved.variables), latents)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """decode(encode(x)) of tiles [N, H, W, 3], or of one photograph [H, W, 3] of any size.

        A photograph goes through in windows whose seams cannot be seen, for there are none: the
        model's reach is bounded and every window has enough halo. Memory is bounded by a window.

        Args:
          images: uint8.

        Returns:
          uint8, the shape of `images`.

        Raises:
          ValueError: Another shape or dtype.
        """
        if images.ndim == 3:
            _check(images[None], "photograph", np.uint8, "[H, W, 3] with values 0..255", 3)
            module = self._module
            return reconstruct_windows(
                lambda x: np.asarray(self._encode(self.saved.variables, x).mean),
                lambda z: np.asarray(self._decode(self.saved.variables, z)),
                images,
                factor=module.downsample,
                encoder_halo=module.encoder_halo,
                decoder_halo=module.decoder_halo,
                window=window_side(module.downsample, module.encoder_halo, module.decoder_halo),
            )
        height, width = images.shape[1:3]
        return self.decode(self.encode(images))[:, :height, :width]


def load_model(path: str | os.PathLike) -> Model:
    """Loads a model for use.

    Args:
      path: A run's workdir (its newest checkpoint is taken) or one of its `checkpoints/STEP`.

    Raises:
      data.errors.DataError: It is neither, or it is damaged.
    """
    return Model(read_model(path))


def _halves(module: nn.Module):
    """The two compiled functions that everything here is made of."""

    @jax.jit
    def encode(variables, images):
        return module.apply(variables, to_float(images), method="encode")

    @jax.jit
    def decode(variables, latents):
        return to_uint8(module.apply(variables, latents, method="decode"))

    return encode, decode


def _in_batches(function, inputs: np.ndarray):
    """Applies a function of [n, ...] to [N, ...] in batches of few different sizes."""
    parts = []
    for start in range(0, len(inputs), MAX_BATCH):
        part = inputs[start : start + MAX_BATCH]
        size = 1 << (len(part) - 1).bit_length()
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        output = jax.device_get(function(jnp.asarray(padded)))
        kept = slice(len(part))
        parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], output))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _check(array: np.ndarray, name: str, dtype: type, expected: str, channels: int) -> None:
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != dtype
        or array.ndim != 4
        or (array.shape[-1] != channels)
    ):
        got = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
        raise ValueError(
            f"{name}: expected {np.dtype(dtype).name} {expected}, last axis {channels}, got {got}"
        )
