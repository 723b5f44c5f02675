"""Layers whose output at a pixel depends only on a bounded neighbourhood.

There is no attention and no statistic over positions. A window with a sufficient halo therefore
gives exactly the values of the whole photograph.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae.precision import HIGHEST


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Moves blocks to channels: [B, H, W, C] -> [B, H/block, W/block, block*block*C].

    Raises ValueError if H or W is not divisible by `block`."""
    b, h, w, c = x.shape
    if h % block or w % block:
        raise ValueError(f"sides must be divisible by {block}, got {h} x {w}")
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """Inverts `space_to_depth`: [B, h, w, block*block*C] -> [B, h*block, w*block, C].

    Raises ValueError if block*block does not divide the number of channels."""
    b, h, w, c = x.shape
    if c % (block * block):
        raise ValueError(f"channels must be divisible by {block * block}, got {c}")
    x = x.reshape(b, h, w, block, block, c // (block * block))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // (block * block))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [B, H, W, C] with [K, K, C, D], K odd, at full precision; replicates the border."""
    reach = kernel.shape[0] // 2
    # jax2onnx 0.17 lowers `jnp.pad` with mode "edge" wrongly, and a concatenation rightly.
    for axis in (1, 2):
        first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
        last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
        x = jax.lax.concatenate([*[first] * reach, x, *[last] * reach], axis)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=numbers, precision=HIGHEST
    )


class RMSNorm(nn.Module):
    """Divides each pixel by the root mean square of its channels (Zhang and Sennrich, 2019)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        norm = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (x32 * norm * scale).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv3x3(silu(conv3x3(norm(x)))), which reaches 2 pixels at its own resolution.

    Attributes:
      dtype: Dtype in which the convolutions compute; parameters are float32.
    """

    dtype: jnp.dtype

    REACH = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = RMSNorm(name="norm")(x)
        h = nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv2")(nn.silu(h))
        return x + h


class Stage(nn.Module):
    """`depth` residual blocks of one width at one resolution.

    Attributes:
      depth: Number of blocks.
      dtype: Dtype in which the convolutions compute.
    """

    depth: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = ResidualBlock(self.dtype, name=f"block{i}")(x)
        return x
