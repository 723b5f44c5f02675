"""FundusVAE: the architecture of the published PyTorch model, a ResNet-50 and linear layers.

    encoder   ResNet-50; three linear layers without activations replace the classifier and give
              the mean and log-variance of a vector
    decoder   linear layers with ReLU, then a sigmoid; an image of one fixed size

Images are channels last in [-1, 1]. The layers take and give [0, 1], as in the published training.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.posterior import Posterior
from vae.models.resnet import BatchNorm, Bottleneck, conv, max_pool
from vae.precision import HIGHEST

PIXELS_AT_ONCE = 4 * 256**2  # two to eight tiles of 256 pixels were measured to be equally fast


class FundusVAE(nn.Module):
    """Encoder q(z | x) and decoder p(x | z) for images [B, S, S, 3] in [-1, 1], S = image_size.

    The variables are `params` and `batch_stats` (running statistics of batch normalisation). With
    `train=True` the layers use the batch's own statistics, and update the running statistics if
    `batch_stats` is mutable.

    Attributes:
      latent_size: L, size of the latent vector.
      image_size: S, side of the images in pixels.
      width: Channels of the stem; bottlenecks of the stages have 1, 2, 4, 8 times as many.
      stages: Number of bottlenecks of each stage.
      head: Widths of the encoder's hidden linear layers. The decoder has the same in reverse order,
        then `decoder_width`.
      dtype: Dtype in which the convolutions compute. Linear layers are always float32.
    """

    latent_size: int = 350
    image_size: int = 256
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    head: tuple[int, ...] = (1024, 512)
    decoder_width: int = 2048
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.latent_size, self.width, self.stages, self.head, self.dtype)
        self.decoder = Decoder(self.image_size, (*reversed(self.head), self.decoder_width))

    def encode(self, x: jax.Array, train: bool = False) -> Posterior:
        """Encodes images [B, S, S, 3] in [-1, 1] to a posterior over vectors, float32 [B, L].

        Raises ValueError for images of another shape."""
        side = self.image_size
        if x.shape[1:] != (side, side, 3):
            raise ValueError(f"expected images [B, {side}, {side}, 3], got {list(x.shape)}")
        x = (x.astype(jnp.float32) + 1) / 2
        count = x.shape[0] if train else images_at_once(*x.shape[:2])
        h = self.encoder(x, train) if count == x.shape[0] else in_parts(self.encoder, x, count)
        return Posterior(*jnp.split(h, 2, axis=-1))

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes latents [B, L] to the mean image, float32 [B, S, S, 3] in [-1, 1]."""
        return 2 * nn.sigmoid(self.decoder(z.astype(jnp.float32))) - 1

    def log_scale(self) -> jax.Array:
        """Returns the fixed log standard deviation of the Gaussian likelihood, float32 [].

        The published loss is a sum of squared errors of values in [0, 1]. Up to a constant this is
        the negative log-likelihood with sigma = sqrt(1/2) in [0, 1], or sqrt(2) in [-1, 1].
        """
        return jnp.float32(0.5 * np.log(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstructs images [B, S, S, 3] from their posterior means; uses every parameter."""
        return self.decode(self.encode(x).mean)

    @property
    def tile_size(self) -> int:
        """Returns the only image side, in pixels, that this model accepts."""
        return self.image_size


def images_at_once(batch: int, side: int) -> int:
    """Returns how many images of a batch to encode at a time, a divisor of the batch size.

    On one CPU the activations of a layer should fit into the caches. Otherwise it is the whole
    batch: accelerators need large batches, and several CPU devices each hold a part of the batch.
    """
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    # In an exported program the batch size is symbolic.
    if not one_cpu or not isinstance(batch, int):
        return batch
    most = max(1, PIXELS_AT_ONCE // side**2)
    return next((n for n in range(min(batch, most), 0, -1) if batch % n == 0), batch)


def in_parts(encoder: nn.Module, x: jax.Array, count: int) -> jax.Array:
    """Encodes images [B, S, S, 3], `count` at a time, in evaluation mode; returns [B, 2L]."""
    scan = nn.scan(
        lambda encoder, carry, part: (carry, encoder(part, False)),
        variable_broadcast=("params", "batch_stats"),
    )
    _, h = scan(encoder, None, x.reshape(-1, count, *x.shape[1:]))
    return h.reshape(len(x), -1)


class Encoder(nn.Module):
    """ResNet and linear head that map images [B, S, S, 3] in [0, 1] to float32 [B, 2L]."""

    latent_size: int
    width: int
    stages: tuple[int, ...]
    head: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        h = conv(self.width, 7, 2, self.dtype, "conv1")(x)
        h = nn.relu(BatchNorm(name="bn1")(h, train))
        h = max_pool(h)
        for stage, depth in enumerate(self.stages):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                name = f"layer{stage + 1}_{block}"
                h = Bottleneck(self.width * 2**stage, stride, self.dtype, name=name)(h, train)
        h = jnp.mean(h.astype(jnp.float32), axis=(1, 2))
        for i, features in enumerate((*self.head, 2 * self.latent_size)):
            h = linear(features, h.shape[-1], f"fc{i}")(h)
        return h


class Decoder(nn.Module):
    """Linear layers that map latents [B, L] to the logits of an image, float32 [B, S, S, 3]."""

    image_size: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = z
        for i, features in enumerate(self.widths):
            h = nn.relu(linear(features, h.shape[-1], f"fc{i}")(h))
        return ToImage(self.image_size, name="to_image")(h)


class ToImage(nn.Module):
    """The last linear layer, [B, C] -> [B, S, S, 3].

    It has 90% of the parameters and keeps PyTorch's layout: weight [3*S*S, C], in channels-first
    order. Conversion then copies the weight, and only the much smaller activations are transposed.
    The weight is the left operand of the product. As the right operand, CPUs would first copy it
    into another layout, which takes longer than the product.
    """

    image_size: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        side, (batch, inputs) = self.image_size, h.shape
        init = uniform(inputs)
        weight = self.param("weight", init, (3 * side * side, inputs))
        bias = self.param("bias", init, (3 * side * side,))
        y = jax.lax.dot_general(weight, h, (((1,), (1,)), ((), ())), precision=HIGHEST)
        return (y + bias[:, None]).reshape(3, side, side, batch).transpose(3, 1, 2, 0)


def linear(features: int, inputs: int, name: str) -> nn.Dense:
    """Returns a float32 linear layer with PyTorch's initialization."""
    init = uniform(inputs)
    return nn.Dense(features, precision=HIGHEST, kernel_init=init, bias_init=init, name=name)


def uniform(inputs: int) -> nn.initializers.Initializer:
    """Returns PyTorch's initializer of linear layers: uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
