"""New tiles from a prior over latents, and interpolation between two tiles."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vae import weights
from vae.checkpoints.config import AUTOENCODER_KL, FUNDUS_VAE, PRIOR
from vae.checkpoints.loading import load_saved, variables_hash
from vae.checkpoints.modules import make_model
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError, UsageError
from vae.data.names import composed
from vae.inference.batches import in_batches
from vae.inference.model import Model
from vae.models import LatentFlow

# Name of the prior N(0, I): the published model's prior, and a baseline for the others.
NORMAL = "normal"
METHODS = ("euler", "heun")
# Tiles that are always computed together, padded if there are fewer: the last digit of a float sum
# depends on the number of rows of the matrix, and a tile must not depend on the other tiles.
CHUNK = 8


class Sampler:
    """An autoencoder and a prior over its latents.

    Attributes:
      model: The autoencoder.
      prior: The loaded prior; None for N(0, I).
      side: Side of a tile, pixels.
      labels: Labels that can be requested; () if the prior was trained without labels.
    """

    def __init__(self, model: Model, prior: SavedModel | None):
        self.model, self.prior = model, prior
        config = prior.config if prior else model.saved.config
        self.side: int = model.tile_size or config.data.crop
        if prior is None and model.tile_size is None:
            self.side = config.data.size
        self.labels: tuple[str, ...] = tuple(map(composed, config.model.get("labels", ())))
        self.steps: int = config.prior.sample_steps if prior else 0
        if prior is not None:
            module, variables = make_model(prior.config), jax.device_put(prior.variables)
            self._flow = functools.partial(_flow(module), variables)
            self._to_latents, self._from_latents = (
                functools.partial(jax.jit(functools.partial(module.apply, method=name)), variables)
                for name in ("colour", "whiten")
            )

    def __repr__(self) -> str:
        prior = self.prior.about if self.prior else "the prior N(0, I)"
        size = f"{self.side} x {self.side} pixels"
        return f"<vae.Sampler of tiles of {size}: {prior}; {self.model!r}>"

    def __reduce__(self):
        return Sampler, (self.model, self.prior)  # The compiled functions cannot be pickled.

    @functools.cached_property
    def hash(self) -> str:
        """Identifies the prior in everything made with it; `NORMAL` if there is none."""
        return variables_hash(self.prior.variables) if self.prior else NORMAL

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Returns the latent shape of one tile."""
        f, channels = self.model.downsample, self.model.latent_channels
        return (channels,) if f is None else (self.side // f, self.side // f, channels)

    def sample(self, numbers: int | Sequence[int], **options) -> np.ndarray:
        """Draws tiles, uint8 [N, S, S, 3]; arguments as for `latents`."""
        return self.decode(self.latents(numbers, **options))

    def latents(
        self,
        numbers: int | Sequence[int],
        *,
        seed: int = 0,
        label: str | None = None,
        steps: int | None = None,
        method: str = "heun",
        guidance: float = 1.0,
    ) -> np.ndarray:
        """Draws latents of new tiles.

        Args:
          numbers: How many tiles; or their indices, from 0 on: a tile is a function of seed and
            index.
          seed: Seed of the noise.
          label: One of `labels`; None draws unconditionally.
          steps: Solver steps from noise to latents; None for the value in the prior's config.
          method: "euler", or "heun", which is of second order and evaluates twice per step.
          guidance: Weight of the label: v(none) + guidance (v(label) - v(none)), Ho and Salimans
            (2022). 1 is the label itself, without guidance.

        Returns:
          float32 [N, h, w, C], or [N, L] for a model with vector latents.

        Raises:
          UsageError: An unknown label or method, or steps below 1.
        """
        numbers = range(numbers) if isinstance(numbers, int) else numbers
        noise = self._noise(numbers, seed)
        if self.prior is None:
            if label is not None:
                raise UsageError(f"label {label!r}: the prior N(0, I) has no labels")
            return noise
        return self._through(noise, label, steps, method, guidance, backwards=False)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents to tiles uint8 [N, S, S, 3]; a tile does not depend on the others."""
        return in_batches(self.model.decode, latents, size=CHUNK, fixed=True)

    def between(
        self, first: np.ndarray, last: np.ndarray, count: int, *, steps: int | None = None
    ) -> np.ndarray:
        """Interpolates between two tiles; both ends are the model's reconstructions.

        With a prior, both latents are followed back to its noise and interpolated there. A point
        between two noises decodes to a tile again; the mean of two latents would decode to two
        tiles on top of each other. With N(0, I) the latents themselves are interpolated.

        Args:
          first: uint8 [S, S, 3].
          last: uint8 [S, S, 3].
          count: Number of tiles, both ends included; at least 2.
          steps: As for `latents`.

        Returns:
          uint8 [count, S, S, 3].
        """
        if count < 2:
            raise UsageError(f"{count} tiles: expected at least 2, the two ends")
        ends = self.model.encode(np.stack([first, last]))
        if self.prior is not None:
            ends = self._through(ends, None, steps, "heun", 1.0, backwards=True)
        path = np.stack([_slerp(*ends, share) for share in np.linspace(0, 1, count)])
        if self.prior is not None:
            path = self._through(path, None, steps, "heun", 1.0, backwards=False)
        return self.decode(path)

    def _noise(self, numbers: Sequence[int], seed: int) -> np.ndarray:
        numbers = jnp.asarray(numbers, jnp.uint32)
        return np.asarray(_normal(jax.random.key(seed), numbers, self.latent_shape))

    def _through(self, arrays, label, steps, method, guidance, *, backwards) -> np.ndarray:
        """Follows the flow from noise to latents, or back."""
        steps = self.steps if steps is None else steps
        if method not in METHODS:
            raise UsageError(f"method {method!r}: expected one of {', '.join(METHODS)}")
        if steps < 1:
            raise UsageError(f"steps {steps}: expected at least 1")
        label = None if label is None else composed(label)
        if label is not None and label not in self.labels:
            known = ", ".join(self.labels) or "none: it was trained without labels"
            raise UsageError(f"label {label!r}: this prior knows {known}")
        number = 0 if label is None else 1 + self.labels.index(label)
        times = _times(steps, self.prior.config.prior.time_shift)
        labels = np.full(CHUNK, number, np.int32)

        def follow(chunk):
            start = self._from_latents(chunk) if backwards else chunk
            end = self._flow(
                start,
                labels,
                times[::-1] if backwards else times,
                np.float32(guidance),
                guided=bool(number) and guidance != 1,
                heun=method == "heun",
            )
            return end if backwards else self._to_latents(end)

        return in_batches(follow, arrays, size=CHUNK, fixed=True)


def load_sampler(
    model: str | os.PathLike | None = None, prior: str | os.PathLike | None = None
) -> Sampler:
    """Loads an autoencoder and a prior over its latents.

    Args:
      model: An autoencoder, as for `vae.load_model`; or a prior, which names its autoencoder; None
        for the autoencoder that the prior names.
      prior: A run of `configs/prior256.py`, one of its checkpoints, or an exported file; "normal"
        for N(0, I). None for the bundled prior, or N(0, I) for a model trained with it (vectors).

    Raises:
      DataError: A file is missing, damaged or of another kind, the two do not belong together, or
        there is no prior for the model.
    """
    saved = None if model is None else load_saved(model)
    if saved is not None and saved.config.model.architecture == PRIOR:
        if prior is not None:
            raise DataError(f"{model} and {prior} are two priors; name an autoencoder as the model")
        saved, prior, model = None, model, None
    if saved is not None and saved.config.model.architecture not in (AUTOENCODER_KL, FUNDUS_VAE):
        raise DataError(f"{model} is no autoencoder; expected one, or a prior")
    if saved is not None and saved.config.model.architecture == FUNDUS_VAE:
        if prior not in (None, NORMAL):
            raise DataError(
                f"{model} has one vector per tile and the prior N(0, I); {prior} is not for it"
            )
        return Sampler(Model(saved), None)
    if prior is not None and os.fspath(prior) == NORMAL:
        return Sampler(Model(saved or load_saved(weights.DEFAULT)), None)
    is_bundled = prior is None
    if is_bundled and not weights.SAMPLE.exists():
        raise DataError(
            "no prior comes with this installation; train one with "
            "--config=configs/prior256.py, or use N(0, I), the prior named normal"
        )
    flow = load_saved(weights.SAMPLE if prior is None else prior)
    if flow.config.model.architecture != PRIOR:
        raise DataError(
            f"{prior} is not a prior: its architecture is {flow.config.model.architecture}; train "
            "one with --config=configs/prior256.py, or use N(0, I), the prior named normal"
        )
    return Sampler(Model(saved or _named_autoencoder(flow)), _checked(flow, saved, is_bundled))


def _named_autoencoder(flow: SavedModel) -> SavedModel:
    name = flow.config.prior.autoencoder
    try:
        found = load_saved(name)
    except DataError as error:
        raise DataError(
            f"{flow.path} is a prior over the latents of {name} "
            f"({flow.provenance.get('autoencoder')}), which was not found; name it as the model "
            f"({error})"
        ) from error
    _checked(flow, found, False)
    return found


def _checked(flow: SavedModel, autoencoder: SavedModel | None, is_bundled: bool) -> SavedModel:
    """Returns the prior; refuses it if it is for the latents of another autoencoder."""
    wanted = flow.provenance.get("autoencoder")
    if autoencoder is None or wanted == (found := variables_hash(autoencoder.variables)):
        return flow
    its = f"{flow.config.prior.autoencoder} ({wanted})"
    if is_bundled:
        raise DataError(
            f"{autoencoder.path} ({found}) has no prior: the bundled one is for {its}; train "
            f"one with --config=configs/prior256.py --config.prior.autoencoder={autoencoder.path} "
            "and name it, or use N(0, I), the prior named normal"
        )
    raise DataError(
        f"the prior {flow.path} is for the latents of {its}, and {autoencoder.path} is {found}; "
        "only the autoencoder that the prior was trained for can decode its samples"
    )


@functools.partial(jax.jit, static_argnums=2)
def _normal(key: jax.Array, numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape))(numbers)


def _flow(module: LatentFlow):
    """Returns the solver, which maps coefficients at the first time to those at the last."""

    @functools.partial(jax.jit, static_argnames=("guided", "heun"))
    def solve(variables, start, labels, times, guidance, *, guided, heun):
        def velocity(x, t):
            t = jnp.full(len(x), t)
            made = module.apply(variables, x, t, labels, method="velocity")
            if not guided:
                return made
            plain = module.apply(variables, x, t, jnp.zeros_like(labels), method="velocity")
            return plain + guidance * (made - plain)

        def step(x, span):
            t, after = span
            slope = velocity(x, t)
            moved = x + (after - t) * slope
            if heun:
                moved = x + (after - t) / 2 * (slope + velocity(moved, after))
            return moved, None

        return jax.lax.scan(step, start, (times[:-1], times[1:]))[0]

    return solve


def _times(steps: int, shift: float) -> np.ndarray:
    """Returns solver times, float32 [steps + 1] from 0 to 1; a shift of 1 gives even steps.

    At larger shifts the first steps, which decide the low frequencies, are shorter. The shift is
    from Esser et al. (2024), "Scaling rectified flow transformers".
    """
    even = np.linspace(0, 1, steps + 1)
    return (even / (even + shift * (1 - even))).astype(np.float32)


def _slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Interpolates on the great circle from a to b (Shoemake, 1985); noise keeps its norm."""
    cosine = np.sum(a * b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-6:
        return (1 - share) * a + share * b
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
