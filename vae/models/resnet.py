"""ResNet-50 as torchvision builds it (He et al., 2016; stride in the 3x3), channels last inside.

Padding, strides, batch normalisation and initialisation are PyTorch's to the digit, so that its
weights give its numbers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Share of a batch in the running statistics, and what is added to a variance: PyTorch's defaults.
MOMENTUM = 0.1
EPSILON = 1e-5
EXPANSION = 4  # a bottleneck's output has so many times the channels of its 3x3 convolution


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Float32 means float32 on every backend; accelerators would take TF32 or bf16 passes."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


class BatchNorm(nn.Module):
    """Normalises every channel of [B, H, W, C] by the batch's statistics, or by running ones.

    The statistics are float32 over the global batch: where `jax.jit` shards the batch over a mesh,
    they are the synchronised ones. Collection `batch_stats`: mean [C], var [C] (of the unbiased
    variances), count [] (int32, batches seen).
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        x32 = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            size = x.size // channels
            if size < 2:
                raise ValueError(
                    f"batch statistics need more than one value a channel, got {x.shape}; "
                    "take a larger batch or larger images"
                )
            # Two passes: a mean of squares loses the digits of a channel with a large mean.
            mean = jnp.mean(x32, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(x32 - mean), axis=(0, 1, 2))
            if self.is_mutable_collection("batch_stats"):
                unbiased = var * (size / (size - 1))
                running_mean.value += MOMENTUM * (mean - running_mean.value)
                running_var.value += MOMENTUM * (unbiased - running_var.value)
                count.value += 1
        return ((x32 - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(x.dtype)


def conv(features: int, size: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution without bias, padded by half its kernel on every side.

    Args:
      features: Channels of the output.
      size: Side of the kernel, odd.
      stride: Step in both directions.
      dtype: What it computes in; the kernel [size, size, C, features] stays float32.
      name: In the module that it is a part of.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        precision=precision(dtype),
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


class Bottleneck(nn.Module):
    """relu(x + bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) with 4 x width channels.

    Attributes:
      width: Channels of the 3x3 convolution.
      stride: Of the 3x3 convolution and of the shortcut.
      dtype: What the convolutions compute in.
    """

    width: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = EXPANSION * self.width
        h = conv(self.width, 1, 1, self.dtype, "conv1")(x)
        h = nn.relu(BatchNorm(name="bn1")(h, train))
        h = conv(self.width, 3, self.stride, self.dtype, "conv2")(h)
        h = nn.relu(BatchNorm(name="bn2")(h, train))
        h = conv(channels, 1, 1, self.dtype, "conv3")(h)
        h = BatchNorm(name="bn3")(h, train)
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, self.stride, self.dtype, "downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x, train)
        return nn.relu(h + x)
