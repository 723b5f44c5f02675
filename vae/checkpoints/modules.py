"""Builds the module that a config describes, and gives the shapes of its variables."""

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

# Initialization of the linear path: PCA sets the units of the model, overlapping PPCA the codec.
LinearFit = tuple[PCA, OverlappingPPCA]


def make_model(config: ConfigDict) -> nn.Module:
    """Returns the flax module that a config describes."""
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
    """Joins the collections of a module's variables; omits empty batch statistics."""
    return {"params": params, **fixed} | ({"batch_stats": batch_stats} if batch_stats else {})


def split_variables(variables: dict) -> tuple[dict, dict, dict]:
    """Inverts `join_variables`: returns params, fixed, batch_stats."""
    fixed = dict(variables)
    return fixed.pop("params"), fixed, fixed.pop("batch_stats", {})


def initial_variables(config: ConfigDict, fit: LinearFit | None = None) -> dict:
    """Initializes the variables of a run's model. Traceable by `jax.eval_shape`.

    Args:
      config: Config of the run.
      fit: Linear fit to the training data, if `has_linear_path`; step 0 is then the linear codec.
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
    """Returns the latent statistics of step 0: 0 and 1, or those of a prior's fitted Gaussian."""
    if config.model.architecture == PRIOR:
        spectrum = variables["spectrum"]["fit"]
        # The variance of a position is the mean of the variances over frequencies.
        variance = jnp.mean(jnp.sum(jnp.square(spectrum.colour), axis=-1), axis=(0, 1))
        return {"latent_mean": jnp.copy(spectrum.mean), "latent_var": variance}
    image = jax.ShapeDtypeStruct((1, config.data.crop, config.data.crop, 3), jnp.float32)
    encode = functools.partial(make_model(config).apply, method="encode")
    channels = jax.eval_shape(encode, variables, image).mean.shape[-1]
    return {"latent_mean": jnp.zeros(channels), "latent_var": jnp.ones(channels)}


def has_linear_path(config: ConfigDict) -> bool:
    """Returns True for a model that is initialized as the best linear codec."""
    return config.model.architecture in (AUTOENCODER_KL, ENHANCER)


def abstract_fit(config: ConfigDict) -> LinearFit:
    """Returns the shapes and dtypes of the linear fit that initializes a run."""
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
    """Returns shapes and dtypes of a model without allocating arrays.

    Returns:
      The variables, and the latent statistics `latent_mean` and `latent_var`.
    """

    def model():
        variables = initial_variables(config)
        return variables, blank_statistics(config, variables)

    return jax.eval_shape(model)
