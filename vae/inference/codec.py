"""Encoder and decoder of an autoencoder on 8-bit images, to be traced or compiled."""

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
    """q(z | x) of images uint8 [B, H, W, 3]."""
    return module.apply(variables, to_float(images), method="encode")


def decode(module: nn.Module, variables: Any, latents: jax.Array) -> jax.Array:
    """Latents float32 [B, ...] -> images uint8 [B, H, W, 3]."""
    return to_uint8(module.apply(variables, latents, method="decode"))


def compiled(
    module: nn.Module, variables: Any, mesh: Mesh | None = None
) -> tuple[Callable[[Any], Posterior], Callable[[Any], jax.Array]]:
    """`encode` and `decode` of a batch, compiled for each shape that they meet.

    Args:
      module: Offers `encode` and `decode`.
      variables: Its variables; where there is a mesh, on the mesh in any sharding.
      mesh: Over whose devices batches are spread; results are whole on every device. All processes
        call together with the same batch. None for one device.
    """
    if mesh is None:
        variables = jax.device_put(variables)  # once, not with every call

    def bound(half: Callable) -> Callable:
        half = functools.partial(half, module)
        if mesh is None:
            return functools.partial(jax.jit(half), variables)
        spread = jax.jit(half, out_shardings=replicated(mesh))
        return lambda batch: spread(variables, put(batch, batch_sharding(mesh)))

    return bound(encode), bound(decode)


def latent_shape(module: nn.Module, variables: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the latent of one image of a shape [H, W, 3]; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    return jax.eval_shape(functools.partial(encode, module), variables, image).mean.shape[1:]
