"""ResNet-50 as in torchvision (He et al., 2016; stride in the 3x3 convolution), channels last.

Padding, strides, batch normalisation and initialisation are exactly PyTorch's, so that PyTorch
weights give the same outputs.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae.models.winograd import winograd
from vae.precision import precision

# Weight of a batch in the running statistics, and constant added to variances: PyTorch's defaults.
MOMENTUM = 0.1
EPSILON = 1e-5
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
EXPANSION = 4  # output channels of a bottleneck per channel of its 3x3 convolution


class BatchNorm(nn.Module):
    """Batch normalisation of [B, H, W, C] by the batch's statistics or by running statistics.

    The statistics are float32 over the global batch: `jax.jit` synchronises them if the batch is
    sharded over a mesh. Collection `batch_stats`: mean [C], var [C] (unbiased variances), count []
    (int32, batches seen). Raises ValueError in training with one value per channel.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if not train:
            factor = jax.lax.rsqrt(running_var.value + EPSILON) * scale
            return ((x.astype(jnp.float32) - running_mean.value) * factor + bias).astype(x.dtype)
        size = x.size // channels
        if size < 2:
            raise ValueError(
                f"batch statistics need more than one value a channel, got {x.shape}; take a "
                "larger batch or larger images"
            )
        y, mean, var = normalise(x, scale, bias)
        if self.is_mutable_collection("batch_stats"):
            mean, unbiased = jax.lax.stop_gradient((mean, var * (size / (size - 1))))
            running_mean.value += MOMENTUM * (mean - running_mean.value)
            running_var.value += MOMENTUM * (unbiased - running_var.value)
            count.value += 1
        return y


@jax.custom_vjp
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises every channel by the batch's statistics (Ioffe and Szegedy, 2015).

    The hand-written gradient reads the activations half as often as the automatic gradient.

    Args:
      x: [B, H, W, C].
      scale: float32 [C].
      bias: float32 [C].

    Returns:
      The normalised x; mean and (biased) variance, float32 [C], without gradient.
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    x32 = x.astype(jnp.float32)
    mean = _channel_mean(x32)
    # Two passes: E[x^2] - E[x]^2 is inaccurate for a channel with a large mean.
    var = _channel_mean(jnp.square(x32 - mean))
    inverse = jax.lax.rsqrt(var + EPSILON)
    y = ((x32 - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_backward(residuals, cotangents):
    x, scale, mean, inverse = residuals
    dy = cotangents[0].astype(jnp.float32)
    whitened = (x.astype(jnp.float32) - mean) * inverse
    dy_mean, dy_whitened = _channel_mean(dy), _channel_mean(dy * whitened)
    dx = (scale * inverse) * (dy - dy_mean - whitened * dy_whitened)
    size = x.size // x.shape[-1]
    return dx.astype(x.dtype), size * dy_whitened, size * dy_mean


normalise.defvjp(_normalise_forward, _normalise_backward)


def _channel_mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(0, 1, 2))


def conv(
    features: int, size: int, stride: int, dtype: jnp.dtype, name: str | None, train: bool = True
) -> nn.Module:
    """Returns a convolution without bias, padded by half its kernel on every side.

    Args:
      features: Channels of the output.
      size: Side of the kernel, odd.
      stride: Stride in both directions.
      dtype: Dtype of the computation; the kernel [size, size, C, features] is float32.
      name: Name in the parent module.
      train: True if the gradient will be taken; if False, a faster forward-only method is used.
    """
    if size == 1:
        return Pointwise(features, stride, dtype, name=name)
    if (size, stride) == (3, 1) and not train:
        return Square(features, dtype, name=name)
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        precision=precision(dtype),
        kernel_init=KERNEL_INIT,
        name=name,
    )


class Pointwise(nn.Module):
    """A 1x1 convolution as a matrix product over all pixels.

    The values are the same. On CPUs the gradient of the kernel takes 20% of a convolution's time.

    Attributes:
      features: Channels of the output.
      stride: Stride in both directions.
      dtype: Dtype of the computation; the kernel [1, 1, C, features] is float32.
    """

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
        channels = x.shape[-1]
        kernel = self.param("kernel", KERNEL_INIT, (1, 1, channels, self.features))
        pixels, matrix = x.reshape(-1, channels), kernel[0, 0].astype(self.dtype)
        y = jnp.matmul(pixels, matrix, precision=precision(self.dtype))
        return y.reshape(*x.shape[:-1], self.features)


class Square(nn.Module):
    """A 3x3 convolution of stride 1, by Winograd's method for float32 on CPUs.

    Attributes:
      features: Channels of the output.
      dtype: Dtype of the computation; the kernel [3, 3, C, features] is float32.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, channels, self.features))
        kernel = kernel.astype(self.dtype)
        direct = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision(self.dtype),
        )
        # For few pixels the transformation of the kernel takes longer than it saves. In an exported
        # program the batch size is symbolic.
        pixels = height * width * (batch if isinstance(batch, int) else 1)
        if x.dtype != jnp.float32 or pixels < 4 * channels:
            return direct(x, kernel)
        return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=direct)


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pools 3x3 windows, stride 2, padding 1: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    It uses shifted slices: on CPUs the gradient takes a third of the time of `nn.max_pool`'s. Equal
    values share the gradient, whereas PyTorch gives it to the first.
    """
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    rows = (x.shape[1] - 3) // 2 + 1
    columns = (x.shape[2] - 3) // 2 + 1
    x = functools.reduce(jnp.maximum, (x[:, i : i + 2 * rows - 1 : 2] for i in range(3)))
    return functools.reduce(jnp.maximum, (x[:, :, j : j + 2 * columns - 1 : 2] for j in range(3)))


class Bottleneck(nn.Module):
    """relu(x + bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) with 4 x width channels.

    Attributes:
      width: Channels of the 3x3 convolution.
      stride: Stride of the 3x3 convolution and of the shortcut.
      dtype: Dtype in which the convolutions compute.
    """

    width: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = EXPANSION * self.width
        h = conv(self.width, 1, 1, self.dtype, "conv1")(x)
        h = nn.relu(BatchNorm(name="bn1")(h, train))
        h = conv(self.width, 3, self.stride, self.dtype, "conv2", train)(h)
        h = nn.relu(BatchNorm(name="bn2")(h, train))
        h = conv(channels, 1, 1, self.dtype, "conv3")(h)
        h = BatchNorm(name="bn3")(h, train)
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, self.stride, self.dtype, "downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x, train)
        return nn.relu(h + x)
