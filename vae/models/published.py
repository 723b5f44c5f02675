"""FundusVAE: the architecture of the published PyTorch model, a ResNet-50 and linear layers.

    encoder   ResNet-50, its classifier replaced by three linear layers without activation between:
              mean and log-variance of a vector
    decoder   linear layers with ReLU, a sigmoid, an image of one fixed size

Images are channels last in [-1, 1] here; the layers see and make [0, 1], as they were trained to.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae.models.posterior import Posterior
from vae.models.resnet import BatchNorm, Bottleneck, conv, max_pool
from vae.precision import HIGHEST

PIXELS_AT_ONCE = 4 * 256**2  # by trial: two to eight tiles of 256 pixels are much the same


class FundusVAE(nn.Module):
    """Encoder q(z | x) and decoder p(x | z) for images [B, S, S, 3] in [-1, 1], S = image_size.

    Variables: `params` and `batch_stats` (running statistics of the batch normalisation). With
    `train=True` the batch's own statistics are used, and the running ones updated where
    `batch_stats` is mutable.

    Attributes:
      latent_size: L, values of the latent vector.
      image_size: S, pixels.
      width: Channels of the stem; a stage's bottlenecks have 1, 2, 4, 8 times as many.
      stages: Bottlenecks of each stage.
      head: Widths of the encoder's hidden linear layers; the decoder's are the same in reverse,
        then `decoder_width`.
      dtype: What the convolutions compute in. Linear layers are float32 always.
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
        """Images [B, S, S, 3] in [-1, 1] -> posterior over vectors, float32 [B, L]."""
        side = self.image_size
        if x.shape[1:] != (side, side, 3):
            raise ValueError(f"expected images [B, {side}, {side}, 3], got {list(x.shape)}")
        x = (x.astype(jnp.float32) + 1) / 2
        count = x.shape[0] if train else images_at_once(*x.shape[:2])
        h = self.encoder(x, train) if count == x.shape[0] else in_parts(self.encoder, x, count)
        return Posterior(*jnp.split(h, 2, axis=-1))

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [B, L] -> mean image float32 [B, S, S, 3] in [-1, 1]."""
        return 2 * nn.sigmoid(self.decoder(z.astype(jnp.float32))) - 1

    def log_scale(self) -> jax.Array:
        """Log standard deviation of the Gaussian likelihood, fixed: float32 [].

        The published loss sums squares of values in [0, 1]: up to a constant the negative
        log-likelihood of sigma = sqrt(1/2) there, which is sqrt(2) in [-1, 1].
        """
        return jnp.float32(0.5 * np.log(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images -> reconstruction from the posterior mean, [B, S, S, 3]; uses every parameter."""
        return self.decode(self.encode(x).mean)

    @property
    def tile_size(self) -> int:
        """The one side of an image, in pixels, that this model takes."""
        return self.image_size


def images_at_once(batch: int, side: int) -> int:
    """How many images of a batch an encoder takes at a time: a divisor of the batch.

    One CPU takes as many as keep a layer's activations in its caches. Elsewhere it is all of them:
    accelerators want large batches, and of several CPU devices each has a part of the batch.
    """
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    # The batch of an exported program is a symbol.
    if not one_cpu or not isinstance(batch, int):
        return batch
    most = max(1, PIXELS_AT_ONCE // side**2)
    return next((n for n in range(min(batch, most), 0, -1) if batch % n == 0), batch)


def in_parts(encoder: nn.Module, x: jax.Array, count: int) -> jax.Array:
    """What an encoder makes of images [B, S, S, 3], `count` of them at a time, without training."""
    scan = nn.scan(
        lambda encoder, carry, part: (carry, encoder(part, False)),
        variable_broadcast=("params", "batch_stats"),
    )
    _, h = scan(encoder, None, x.reshape(-1, count, *x.shape[1:]))
    return h.reshape(len(x), -1)


class Encoder(nn.Module):
    """ResNet and linear head: images [B, S, S, 3] in [0, 1] -> float32 [B, 2L]."""

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
    """Linear layers: latents [B, L] -> logits of an image, float32 [B, S, S, 3]."""

    image_size: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = z
        for i, features in enumerate(self.widths):
            h = nn.relu(linear(features, h.shape[-1], f"fc{i}")(h))
        return ToImage(self.image_size, name="to_image")(h)


class ToImage(nn.Module):
    """The last linear layer: [B, C] -> [B, S, S, 3].

    It holds nine tenths of the parameters, and keeps PyTorch's layout: weight [3*S*S, C], rows in
    channels-first order. A converted file is then a copy of it, and the far smaller activations
    are what is transposed. The weight is the left operand: the other way round, CPUs first lay all
    of it out anew, which takes longer than the product.
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
    """A float32 linear layer that starts as PyTorch's."""
    init = uniform(inputs)
    return nn.Dense(features, precision=HIGHEST, kernel_init=init, bias_init=init, name=name)


def uniform(inputs: int) -> nn.initializers.Initializer:
    """PyTorch's start of linear layers, weight and bias: uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
