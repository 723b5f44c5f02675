"""An autoencoder loaded from a path, for tiles and photographs as uint8 arrays."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.loading import SavedModel, load_saved, variables_hash
from vae.checkpoints.modules import make_model
from vae.data.errors import DataError
from vae.inference.arrays import Images, as_images
from vae.inference.batches import batch_size, in_batches
from vae.inference.blending import reconstruct_blended
from vae.inference.codec import compiled
from vae.inference.windows import LARGEST, decode_windows, encode_windows
from vae.models import Posterior


class Model:
    """A trained autoencoder of one of two kinds.

    `AutoencoderKL` (`tile_size` is None) takes images of any size, and its latents are a grid: N
    images [N, H, W, 3] have latents [N, ceil(H/f), ceil(W/f), C], one image [H, W, 3] has
    [ceil(H/f), ceil(W/f), C]. Its receptive field is bounded. Images of more than about a megapixel
    are processed in windows with no seam; memory holds one window and the input and output arrays.

    `FundusVAE` takes tiles of `tile_size` pixels only, and its latents are vectors: [N, L].
    Photographs of other sizes can be reconstructed, as tiles that overlap by half and are blended,
    but they have no latents.

    Attributes:
      saved: The loaded file: path, config, step, variables, latent statistics.
      tile_size: Side of the only image size that the model takes, pixels; None for any size.
      downsample: f, pixels per latent position and axis; None if latents are vectors.
      latent_channels: C or L, the last axis of latents.
    """

    def __init__(self, saved: SavedModel):
        self.saved = saved
        self._module = make_model(saved.config)
        self.tile_size: int | None = self._module.tile_size
        self.downsample: int | None = getattr(self._module, "downsample", None)
        self.latent_channels: int = len(saved.latent_mean)
        self._encode, self._decode = compiled(self._module, saved.variables)

    def __repr__(self) -> str:
        side, latents = self.tile_size, f"[{self.latent_channels}]"
        if side is None:
            latents = f"[H/{self.downsample}, W/{self.downsample}, {self.latent_channels}]"
        size = "any size" if side is None else f"{side} x {side} pixels"
        return f"<vae.Model {self.saved.about}; images of {size} -> latents {latents}>"

    def __reduce__(self):
        return Model, (self.saved,)  # The compiled functions cannot be pickled.

    @functools.cached_property
    def hash(self) -> str:
        """Identifies the model in everything made with it."""
        return variables_hash(self.saved.variables)

    def posterior(self, images: Images) -> Posterior:
        """Returns q(z | x) of images [N, H, W, 3], or of one image [H, W, 3].

        Args:
          images: uint8, sRGB, any N; or one image as a path or a Pillow image. Sides not divisible
            by f are extended by their edge pixels.

        Returns:
          Mean and log-variance, numpy float32, in the shape of the latents (see the class).

        Raises:
          ValueError: Wrong shape or dtype, or not the tile size of the model.
          vae.data.errors.DataError: A file cannot be read.
        """
        return self._latents(images, lambda posterior: posterior)

    def encode(self, images: Images) -> np.ndarray:
        """Returns the posterior means of images, float32; see `posterior`."""
        return self._latents(images, lambda posterior: posterior.mean)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents: uint8 [N, h*f, w*f, 3] or [h*f, w*f, 3]; for vectors [N, S, S, 3].

        Args:
          latents: Latents in the shape that `encode` returns, any floating dtype.

        Raises:
          ValueError: Wrong shape or dtype.
        """
        latents = self._check_latents(latents)
        f = self.downsample
        if f is None:
            return in_batches(self._decode, latents, size=batch_size(self.tile_size**2))
        if latents.ndim == 3:
            return decode_windows(self._decode, latents, factor=f, halo=self._module.decoder_halo)
        height, width = latents.shape[1] * f, latents.shape[2] * f
        if len(latents) and max(height, width) > LARGEST:
            return np.stack([self.decode(grid) for grid in latents])
        return in_batches(self._decode, latents, size=batch_size(height * width))

    def reconstruct(self, images: Images) -> np.ndarray:
        """Reconstructs images [N, H, W, 3], or one photograph [H, W, 3].

        An `AutoencoderKL` returns decode(encode(x)) for tiles and photographs of any size. A
        `FundusVAE` does so for tiles of its own size; it reconstructs other photographs as
        overlapping tiles and blends them.

        Args:
          images: uint8; or one photograph as a path or a Pillow image. The field of view is not
            searched; `fundus-vae reconstruct` makes all pixels outside it black.

        Returns:
          uint8 of the shape of `images`.

        Raises:
          ValueError: Wrong shape or dtype.
          vae.data.errors.DataError: A file cannot be read.
        """
        images = as_images(images, "images")
        height, width = images.shape[-3:-1]
        if self.tile_size is None:
            return self.decode(self.encode(images))[..., :height, :width, :]
        if (height, width) == (self.tile_size, self.tile_size):
            tiles = images.reshape(-1, height, width, 3)
            return self.decode(self.encode(tiles)).reshape(images.shape)
        if images.ndim == 4:
            return (
                np.stack([self.reconstruct(image) for image in images]) if len(images) else images
            )
        return reconstruct_blended(
            lambda tiles: self._decode(self._encode(tiles).mean),
            images,
            tile=self.tile_size,
            batch=batch_size(self.tile_size**2),
        )

    def _latents(self, images: Images, pick: Callable[[Posterior], Any]) -> Any:
        """Encodes images and applies `pick` to the posterior of each batch."""
        images = as_images(images, "images")

        def encode(batch):
            return pick(self._encode(batch))

        height, width = images.shape[-3:-1]
        side, f = self.tile_size, self.downsample
        if side is not None:
            if images.ndim != 4 or (height, width) != (side, side):
                raise ValueError(
                    f"images: this model encodes tiles [N, {side}, {side}, 3], got "
                    f"{list(images.shape)}; reconstruct takes photographs of any size"
                )
            return in_batches(encode, images, size=batch_size(side * side))
        if images.ndim == 3:
            return encode_windows(encode, images, factor=f, halo=self._module.encoder_halo)
        if len(images) and max(height, width) > LARGEST:
            return _stack([self._latents(image, pick) for image in images])
        images = np.pad(images, ((0, 0), (0, -height % f), (0, -width % f), (0, 0)), mode="edge")
        return in_batches(encode, images, size=batch_size(height * width))

    def _check_latents(self, latents: np.ndarray) -> np.ndarray:
        latents = np.asarray(latents)
        vectors = self.downsample is None
        if (
            not np.issubdtype(latents.dtype, np.floating)
            or latents.ndim not in ((2,) if vectors else (3, 4))
            or latents.shape[-1] != self.latent_channels
            or (not vectors and 0 in latents.shape[-3:-1])
        ):
            shape = "[N, L]" if vectors else "[N, h, w, C] or [h, w, C]"
            raise ValueError(
                f"latents: expected float32 {shape}, last axis {self.latent_channels}, got "
                f"{latents.dtype} {list(latents.shape)}"
            )
        return latents.astype(np.float32, copy=False)


def load_model(path: str | os.PathLike = "f8c32") -> Model:
    """Loads an autoencoder.

    Args:
      path: A run's workdir (its newest checkpoint is loaded), one of its `checkpoints/STEP`, the
        output of `convert_torch_checkpoint`, an exported `.safetensors` file, a repository of the
        Hugging Face Hub, hf://owner/name[@revision], or the name of bundled weights: f8c4, f8c8,
        f8c16, f8c32, f8c48.

    Raises:
      vae.data.errors.DataError: No model, a damaged one, an enhancer, or a prior.
    """
    saved = load_saved(path)
    if saved.config.model.architecture == PRIOR:
        raise DataError(
            f"{path} is a prior over the latents of {saved.config.prior.autoencoder}, no "
            "autoencoder: `fundus-vae sample` and `vae.load_sampler` take it"
        )
    if saved.config.model.architecture == ENHANCER:
        raise DataError(
            f"{path} is an enhancer, no autoencoder: `fundus-vae enhance` and "
            "`vae.load_enhancer` take it"
        )
    return Model(saved)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
