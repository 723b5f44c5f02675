"""Training a prior: the flow-matching objective, and the latents that it is for."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.metrics import to_float
from vae.models.prior import LatentFlow
from vae.models.spectrum import Spectrum, fit_spectrum, octaves
from vae.training.augment import augment
from vae.training.exported import SavedModel
from vae.training.sharding import batch_sharding, replicated
from vae.training.state import join_variables, make_model


def flow_loss(
    config: ConfigDict, model: LatentFlow
) -> Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], dict]]]:
    """The objective of a prior, for `vae.training.steps`.

    The squared error of the velocity, in units of what the best Gaussian leaves unknown: 1 at step
    0. Every octave of waves counts alike, for each is what the eye sees at one size of detail; the
    optimum is the same for all weights.

    Args:
      config: The run's.
      model: Of the config.

    Returns:
      `loss(params, fixed, batch_stats, example, rows, key)`: the loss [], metrics and the batch
      statistics. An example is a dict of `mean` and `log_var` float32 [B, S, S, C] and `label`
      int32 [B]; what is drawn depends on (key, row).
    """
    settings, shape = config.prior, (model.latent_side, model.latent_side, model.latent_channels)
    weights = octaves(model.latent_side)
    bands = _bands(model.latent_side, len(model.widths))

    def draw(key: jax.Array, row: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, row), 4)
        return {
            "spread": jax.random.normal(keys[0], shape),
            "noise": jax.random.normal(keys[1], shape),
            # More of the middle, where most is decided (Esser et al., 2024).
            "t": jax.nn.sigmoid(jax.random.normal(keys[2])),
            "nameless": jax.random.bernoulli(keys[3], settings.label_dropout),
        }

    def loss_fn(params, fixed, batch_stats, example, rows, key):
        # Each example `draws` times, its copies beside it: on its device, on a mesh.
        example, rows = jax.tree.map(lambda a: jnp.repeat(a, settings.draws, 0), (example, rows))
        copies = jnp.arange(len(rows)) % settings.draws
        drawn = jax.vmap(draw, (None, 0))(key, rows * settings.draws + copies)
        errors = model.apply(
            join_variables(params, fixed, batch_stats),
            example["mean"] + jnp.exp(0.5 * example["log_var"]) * drawn["spread"],
            drawn["noise"],
            drawn["t"],
            jnp.where(drawn["nameless"], 0, example["label"]),
            method="errors",
        )
        square = jnp.square(errors).mean(axis=(0, 3))  # [S, S]
        metrics = {"loss_octave": jnp.stack([(square * band).sum() / band.sum() for band in bands])}
        return jnp.mean(weights * square), (metrics, batch_stats)

    return loss_fn


def _bands(side: int, levels: int) -> np.ndarray:
    """Masks of the frequencies that each level of the network adds, from fine to coarse, and of the
    mean: float32 [levels + 1, side, side]."""
    ring = np.maximum.outer(np.arange(side), np.arange(side))
    edges = [side >> level for level in range(levels)] + [1, 0]
    return np.stack([
        (ring < outer) & (ring >= inner) for outer, inner in itertools.pairwise(edges)
    ]).astype(np.float32)  # fmt: skip


def make_encoder(
    config: ConfigDict, mesh: Mesh, autoencoder: SavedModel
) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    """The first half of a prior's step: tiles to posteriors, on the mesh.

    Args:
      config: The prior's.
      mesh: Of axes ("data", "fsdp").
      autoencoder: Whose latents.

    Returns:
      `encode(images, key)`: uint8 [batch_size, S, S, 3] over the mesh, cropped and turned by the
      key and the row, to `mean` and `log_var` float32 [batch_size, h, w, C].
    """
    module, data = make_model(autoencoder.config), config.data
    variables = jax.device_put(autoencoder.variables, replicated(mesh))
    rows = jnp.arange(config.batch_size)

    def encode(variables, images, key):
        images = augment(images, key, rows, data.crop, data.augment, data.scales)
        images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
        posterior = module.apply(variables, to_float(images), method="encode")
        return {"mean": posterior.mean, "log_var": posterior.log_var}

    compiled = jax.jit(
        encode,
        in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
        out_shardings=batch_sharding(mesh),
    )
    return lambda images, key: compiled(variables, images, key)


def spectrum_of(autoencoder: SavedModel, tiles: Iterable[np.ndarray], size: int) -> Spectrum:
    """The best Gaussian for the latents of some tiles.

    Args:
      autoencoder: Whose latents.
      tiles: uint8 [b, T, T, 3] at a time.
      size: Side of their middle that is taken, pixels.
    """
    module = make_model(autoencoder.config)
    encode = jax.jit(lambda variables, x: module.apply(variables, to_float(x), method="encode"))
    variables: Any = jax.device_put(autoencoder.variables)

    def latents():
        for images in tiles:
            begin = (images.shape[1] - size) // 2
            middle = images[:, begin : begin + size, begin : begin + size]
            for start in range(0, len(middle), 16):
                posterior = jax.device_get(encode(variables, middle[start : start + 16]))
                yield posterior.mean, np.exp(posterior.log_var)

    return fit_spectrum(latents())


def label_numbers(names: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Names str [B] -> int32 [B], as `LatentFlow` counts them; 0 for those it cannot be told."""
    places = {label: place for place, label in enumerate(labels, 1)}
    return np.array([places.get(str(name), 0) for name in names], np.int32)
