"""Training of a prior: the flow-matching objective, and the encoding of tiles to latents."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vae.checkpoints.modules import join_variables, make_model
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.names import composed
from vae.inference.codec import compiled, encode
from vae.models.augment import augment
from vae.models.prior import LatentFlow, deviations
from vae.models.spectrum import Spectrum, bands, fit_spectrum, octaves
from vae.sharding import batch_sharding, replicated
from vae.tasks.randomness import step_key

# Smallest mean square of a level's normalised coefficients of x_t in the weights; the mean is 1.
LEAST_POWER = 0.1


def flow_loss(
    config: ConfigDict, model: LatentFlow
) -> Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], dict]]]:
    """Returns the training loss of a prior, for `vae.training.steps`.

    The loss is the weighted squared error of the velocity, divided by the variance that the best
    Gaussian leaves; it is about 1 at step 0. Weights that depend on the latents only through x_t do
    not change the optimum. They are chosen as follows:
    * Every octave has the same total weight, because each is visible as one size of detail.
    * A frequency has the weight 4 R / (1 + R)^2, where R is the ratio of its signal variance to the
      noise variance. At small R it is unpredictable, and at large R nothing is left to learn.
    * Tiles with strong coefficients, as from a grainy camera, weigh no more than smooth tiles.

    Args:
      config: Config of the run.
      model: Model of the config.

    Returns:
      `loss(params, fixed, batch_stats, example, rows, key)`, which gives the loss [], metrics and
      the batch statistics. An example is a dict of `mean` and `log_var` float32 [B, S, S, C] and
      `label` int32 [B]. Random draws depend on (key, row).
    """
    settings, shape = config.prior, (model.latent_side, model.latent_side, model.latent_channels)
    levels = bands(model.latent_side, len(model.widths))
    sizes = levels.sum(axis=(1, 2))
    octave = octaves(model.latent_side)[..., None]
    always = label_numbers(np.array(settings.always_labelled), model.labels)

    def time(normal: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(settings.time_mean + settings.time_spread * normal)

    middle = time(jax.scipy.special.ndtri((np.arange(256) + 0.5) / 256))
    usual = (octave * _frequency_weight(middle, model.latent_side)).mean()

    def draw(key: jax.Array, row: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, row), 4)
        return {
            "spread": jax.random.normal(keys[0], shape),
            "noise": jax.random.normal(keys[1], shape),
            "t": time(jax.random.normal(keys[2])),
            "label_hidden": jax.random.bernoulli(keys[3], settings.label_dropout),
        }

    def loss_fn(params, fixed, batch_stats, example, rows, key):
        # Each example is repeated `draws` times in place, so its copies stay on its device.
        example, rows = jax.tree.map(lambda a: jnp.repeat(a, settings.draws, 0), (example, rows))
        copies = jnp.arange(len(rows)) % settings.draws
        drawn = jax.vmap(draw, (None, 0))(key, rows * settings.draws + copies)
        hidden = drawn["label_hidden"] & ~jnp.isin(example["label"], always)
        errors, seen = model.apply(
            join_variables(params, fixed, batch_stats),
            example["mean"] + jnp.exp(0.5 * example["log_var"]) * drawn["spread"],
            drawn["noise"],
            drawn["t"],
            jnp.where(hidden, 0, example["label"]),
            method="errors",
        )
        power = jnp.einsum("luv,buvc->bl", levels, jnp.square(seen)) / (sizes * shape[-1])
        # The mean has only a few coefficients, whose power would be a noisy weight.
        power = jnp.maximum(power, LEAST_POWER).at[:, -1].set(1.0)
        power = jnp.einsum("luv,bl->buv", levels, power)[..., None]
        weights = _frequency_weight(drawn["t"], model.latent_side) / power
        square = weights * jnp.square(errors)
        by_level = jnp.einsum("luv,buvc->l", levels, square)
        metrics = {"loss_octave": by_level / jnp.einsum("luv,buvc->l", levels, weights) / shape[-1]}
        return (octave * square).mean() / usual, (metrics, batch_stats)

    return loss_fn


def _frequency_weight(t: jax.Array, side: int) -> jax.Array:
    """Returns 4 R / (1 + R)^2 of `flow_loss` at times t [B]: [B, side, side, 1] in [0, 1]."""
    t = t[:, None, None, None]
    signal, noise = jnp.square(t * deviations(side)), jnp.square(1 - t)
    return 4 * signal * noise / jnp.square(signal + noise)


def make_encoder(
    config: ConfigDict, mesh: Mesh, autoencoder: SavedModel
) -> Callable[[jax.Array, int], dict[str, jax.Array]]:
    """Returns the function that encodes tiles to posteriors before each step of a prior.

    Args:
      config: Config of the prior.
      mesh: Device mesh with axes ("data", "fsdp").
      autoencoder: Model that defines the latents.

    Returns:
      `encode(images, step)`, which crops and turns uint8 [batch_size, S, S, 3], sharded over the
      mesh, by (step, row), and gives `mean` and `log_var` float32 [batch_size, h, w, C].
    """
    module, data = make_model(autoencoder.config), config.data
    variables = jax.device_put(autoencoder.variables, replicated(mesh))
    rows = jnp.arange(config.batch_size)

    def posteriors(variables, images, step):
        key = step_key(config.seed, "augment", step)
        images = augment(images, key, rows, data.crop, data.augment, data.scales)
        images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
        posterior = encode(module, variables, images)
        return {"mean": posterior.mean, "log_var": posterior.log_var}

    run = jax.jit(
        posteriors,
        in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
        out_shardings=batch_sharding(mesh),
    )
    return lambda images, step: run(variables, images, np.int32(step))


def spectrum_of(autoencoder: SavedModel, tiles: Iterable[np.ndarray], size: int) -> Spectrum:
    """Fits the best Gaussian to the latents of tiles.

    Args:
      autoencoder: Model that defines the latents.
      tiles: Batches of tiles, uint8 [b, T, T, 3].
      size: Side in pixels of the central crop that is encoded.
    """
    posteriors, _ = compiled(make_model(autoencoder.config), autoencoder.variables)

    def latents():
        for images in tiles:
            begin = (images.shape[1] - size) // 2
            middle = images[:, begin : begin + size, begin : begin + size]
            for start in range(0, len(middle), 16):
                posterior = jax.device_get(posteriors(middle[start : start + 16]))
                yield posterior.mean, np.exp(posterior.log_var)

    return fit_spectrum(latents())


def label_numbers(names: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Converts names, str [B], to label indices of `LatentFlow`, int32 [B]; 0 for unknown names."""
    places = {composed(label): place for place, label in enumerate(labels, 1)}
    return np.array([places.get(composed(str(name)), 0) for name in names], np.int32)
