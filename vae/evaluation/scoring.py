"""Device steps of the evaluation: from a batch of tiles to metrics per tile.

Every step takes a batch sharded over the mesh and returns arrays [B] replicated on every device, so
every process sees all tiles. Steps are cached by their arguments: an evaluation that runs
repeatedly compiles at its first call only.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vae import metrics
from vae.evaluation import baselines
from vae.inference import codec
from vae.models.pca import PCA
from vae.models.posterior import Posterior
from vae.sharding import replicated

TileMetrics = dict[str, jax.Array]

# A process evaluates only a few combinations of module and mesh.
_cached = functools.lru_cache(maxsize=16)


@_cached
def model_step(module: nn.Module, mesh: Mesh) -> Callable[..., TileMetrics]:
    """Returns the step (variables, images, fov, first_row, seed) -> metrics of a model.

    `images` uint8 [B, H, W, 3], `fov` bool [B, H, W], `first_row` int [] (position of the batch in
    the split), `seed` uint32 [] (for posterior samples). The metrics are float32 [B]: `ssim` and
    `psnr` (dB) of the posterior mean (prefix `model.`) and of a sample (prefix `model_sampled.`);
    `model.kl` (nats); `model.psnr_unrounded`; `windows`, SSIM positions inside the field of view.
    """

    def step(variables, images, fov, first_row, seed):
        def encode(x):
            return module.apply(variables, x, method="encode")

        def decode(z):
            return module.apply(variables, z, method="decode")

        windows = jnp.sum(metrics.window_inside(fov), axis=(1, 2))
        return {"windows": windows} | _codec("model", encode, decode, images, fov, first_row, seed)

    return _jit(step, mesh)


@_cached
def baseline_step(mesh: Mesh) -> Callable[..., TileMetrics]:
    """Returns the step (pca or None, images, fov, first_row, seed) -> `NAME.ssim`, `NAME.psnr`.

    The names are `mean_colour` and `bicubic_x4`; a PCA adds `pca` and `pca_sampled`, with
    `pca.psnr_unrounded` and `pca.kl`.
    """

    def step(pca: PCA | None, images, fov, first_row, seed):
        scores = _score("mean_colour", images, baselines.mean_colour(images, fov), fov)
        scores |= _score("bicubic_x4", images, baselines.bicubic(images), fov)
        if pca is not None:
            scores |= _codec("pca", pca.encode, pca.decode, images, fov, first_row, seed)
        return scores

    return _jit(step, mesh)


@_cached
def pca_step(mesh: Mesh) -> Callable[..., TileMetrics]:
    """Returns the step (pca, images, fov, first_row, seed) -> `pca.` and `pca_sampled.` metrics."""

    def step(pca: PCA, images, fov, first_row, seed):
        return _codec("pca", pca.encode, pca.decode, images, fov, first_row, seed)

    return _jit(step, mesh)


@_cached
def bicubic_step(mesh: Mesh, factor: int) -> Callable[..., TileMetrics]:
    """Returns the step (images, fov) -> `bicubic.ssim`, `bicubic.psnr` at a reduction factor."""

    def step(images, fov):
        return _score("bicubic", images, baselines.bicubic(images, factor), fov)

    return _jit(step, mesh)


@_cached
def jpeg_step(mesh: Mesh) -> Callable[..., TileMetrics]:
    """Returns the step (images, decoded, fov, sizes) -> `jpeg.ssim`, `jpeg.psnr`, `jpeg.bytes`."""

    def step(images, decoded, fov, sizes):
        return _score("jpeg", images, decoded, fov) | {"jpeg.bytes": sizes}

    return _jit(step, mesh)


@_cached
def reconstruct_step(module: nn.Module, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the step (variables, images) -> (images, reconstructions), uint8, replicated."""

    def step(variables, images):
        posterior = codec.encode(module, variables, images)
        return images, codec.decode(module, variables, posterior.mean)

    return _jit(step, mesh)


def latent_size(module: nn.Module, variables: Any, shape: tuple[int, ...]) -> int:
    """Returns the number of latent values of an image [H, W, 3], from shapes alone."""
    return math.prod(codec.latent_shape(module, variables, shape))


def _jit(step: Callable, mesh: Mesh) -> Callable:
    return jax.jit(step, out_shardings=replicated(mesh))


def _codec(
    name: str,
    encode: Callable[[jax.Array], Posterior],
    decode: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    fov: jax.Array,
    first_row: jax.Array,
    seed: jax.Array,
) -> TileMetrics:
    posterior = encode(metrics.to_float(images))
    rows = first_row + jnp.arange(images.shape[0])
    output = decode(posterior.mean)
    sampled = decode(posterior.sample_rows(jax.random.key(seed), rows))
    scores = _score(name, images, metrics.to_uint8(output), fov)
    scores |= _score(f"{name}_sampled", images, metrics.to_uint8(sampled), fov)
    scores[f"{name}.kl"] = posterior.kl()
    levels = (jnp.clip(output, -1.0, 1.0) + 1.0) * 127.5
    scores[f"{name}.psnr_unrounded"] = metrics.masked_psnr(images, levels, fov)
    return scores


def _score(name: str, images: jax.Array, outputs: jax.Array, fov: jax.Array) -> TileMetrics:
    """Returns SSIM and PSNR (dB) of 8-bit outputs."""
    scaled = (x.astype(jnp.float32) / 255.0 for x in (images, outputs))
    return {
        f"{name}.ssim": metrics.masked_ssim(*scaled, fov),
        f"{name}.psnr": metrics.masked_psnr(images, outputs, fov),
    }
