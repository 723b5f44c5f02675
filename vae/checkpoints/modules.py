"""The module that a config describes, and the shapes of its variables. Nothing is trained here."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae.checkpoints.config import AUTOENCODER_KL, ENHANCER, FUNDUS_VAE, PRIOR
from vae.data.thumbnails import THUMBNAIL
from vae.models import (
    PCA,
    AutoencoderKL,
    Enhancer,
    FundusVAE,
    LatentFlow,
    OverlappingPPCA,
    with_linear_codec,
)
from vae.models.enhancer import with_wide_likelihood

# The start of the linear path: the units of the model, and the codec.
LinearFit = tuple[PCA, OverlappingPPCA]


def make_model(config: ConfigDict) -> nn.Module:
    """The flax module that a config describes."""
    settings = {
        key: tuple(value) if isinstance(value, tuple | list) else value
        for key, value in config.model.items()
    }
    module = _MODULES[settings.pop("architecture")]
    return module(**settings, dtype=jnp.dtype(config.train.compute_dtype))


_MODULES = {
    AUTOENCODER_KL: AutoencoderKL,
    ENHANCER: Enhancer,
    FUNDUS_VAE: FundusVAE,
    PRIOR: LatentFlow,
}


def join_variables(params: dict, fixed: dict, batch_stats: dict) -> dict:
    """The collections of a module's variables; without an empty one."""
    return {"params": params, **fixed} | ({"batch_stats": batch_stats} if batch_stats else {})


def split_variables(variables: dict) -> tuple[dict, dict, dict]:
    """The parts that `join_variables` joins: params, fixed, batch_stats."""
    fixed = dict(variables)
    return fixed.pop("params"), fixed, fixed.pop("batch_stats", {})


def initial_variables(config: ConfigDict, fit: LinearFit | None = None) -> dict:
    """Fresh variables of a run's model. Traceable by `jax.eval_shape`.

    Args:
      config: The run's.
      fit: To the training data, where `has_linear_path`: then step 0 is the linear codec.
    """
    if config.model.architecture == PRIOR:
        side, channels = config.model.latent_side, config.model.latent_channels
        inputs = jnp.zeros((1, side, side, channels)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        return make_model(config).init(jax.random.key(config.seed), *inputs)
    inputs = [jnp.zeros((1, config.data.crop, config.data.crop, 3))]
    enhancing = config.model.architecture == ENHANCER
    if enhancing:
        inputs += [jnp.zeros((1, THUMBNAIL, THUMBNAIL, 3)), jnp.ones((1, 3))]
    variables = make_model(config).init(jax.random.key(config.seed), *inputs)
    variables = with_linear_codec(variables, *fit) if fit is not None else variables
    return with_wide_likelihood(variables) if enhancing else variables


def blank_statistics(config: ConfigDict, variables: dict) -> dict[str, jax.Array]:
    """Of latents before the first batch; of a prior those that it was fitted to."""
    if config.model.architecture == PRIOR:
        spectrum = variables["spectrum"]["fit"]
        # A position's variance is the mean of its waves'.
        variance = jnp.mean(jnp.sum(jnp.square(spectrum.colour), axis=-1), axis=(0, 1))
        return {"latent_mean": jnp.copy(spectrum.mean), "latent_var": variance}
    image = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, 3), jnp.float32)
    encode = functools.partial(make_model(config).apply, method="encode")
    channels = jax.eval_shape(encode, variables, image).mean.shape[-1]
    return {"latent_mean": jnp.zeros(channels), "latent_var": jnp.ones(channels)}


def has_linear_path(config: ConfigDict) -> bool:
    """True for a model that starts as the best linear codec."""
    return config.model.architecture in (AUTOENCODER_KL, ENHANCER)


def abstract_fit(config: ConfigDict) -> LinearFit:
    """Shapes and dtypes of the fit that a run starts from."""
    patch, channels = 3 * config.model.downsample**2, config.model.latent_channels
    grid = (config.model.linear_kernel,) * 2
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    pca = PCA(
        mean=shape((patch,)),
        components=shape((patch, channels)),
        sd=shape((channels,)),
        scale=shape(()),
    )
    overlapping = OverlappingPPCA(
        analysis=shape((*grid, patch, channels)),
        synthesis=shape((*grid, channels, patch)),
        log_var=shape((channels,)),
        scale=shape(()),
    )
    return pca, overlapping


def abstract_model(config: ConfigDict) -> tuple[dict, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and dtypes of a model; nothing is allocated.

    Returns:
      The variables, and the statistics of the latents: `latent_mean` and `latent_var`.
    """

    def model(fit):
        variables = initial_variables(config, fit)
        return variables, blank_statistics(config, variables)

    return jax.eval_shape(model, abstract_fit(config) if has_linear_path(config) else None)
