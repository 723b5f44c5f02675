"""Encoder and decoder of an autoencoder on 8-bit images, as functions to trace or compile."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vae.metrics import to_float, to_uint8
from vae.models import Posterior
from vae.sharding import batch_sharding, put, replicated


def encode(module: nn.Module, variables: Any, images: jax.Array) -> Posterior:
    """Returns the posterior q(z | x) of images uint8 [B, H, W, 3]."""
    return module.apply(variables, to_float(images), method="encode")


def decode(module: nn.Module, variables: Any, latents: jax.Array) -> jax.Array:
    """Decodes latents float32 [B, ...] to images uint8 [B, H, W, 3]."""
    return to_uint8(module.apply(variables, latents, method="decode"))


def compiled(
    module: nn.Module, variables: Any, mesh: Mesh | None = None
) -> tuple[Callable[[Any], Posterior], Callable[[Any], jax.Array]]:
    """Returns `encode` and `decode` of a batch, compiled once per input shape.

    Args:
      module: Module with the methods `encode` and `decode`.
      variables: Its variables; with a mesh, on that mesh in any sharding.
      mesh: Mesh over whose devices batches are split; every device gets the whole result. All
        processes must call together with the same batch. None uses one device.
    """
    if mesh is None:
        variables = jax.device_put(variables)  # once, not at every call

    def bound(half: Callable) -> Callable:
        half = functools.partial(half, module)
        if mesh is None:
            return functools.partial(jax.jit(half), variables)
        spread = jax.jit(half, out_shardings=replicated(mesh))
        return lambda batch: spread(variables, put(batch, batch_sharding(mesh)))

    return bound(encode), bound(decode)


def latent_shape(module: nn.Module, variables: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the latent shape of one image of shape [H, W, 3]; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    return jax.eval_shape(functools.partial(encode, module), variables, image).mean.shape[1:]
