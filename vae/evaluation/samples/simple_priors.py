"""Latents to compare a prior's with: the simpler priors, fitted to training latents."""

import importlib.util
from collections.abc import Callable

import numpy as np

from vae.inference.embedding import pool
from vae.inference.sample import Sampler

MIXTURE = 16  # components
# A component of fewer tiles has no covariance to speak of.
FEWEST = 8

Draw = Callable[[int], np.ndarray]


def baselines(sampler: Sampler, latents: np.ndarray, seed: int = 0) -> dict[str, Draw]:
    """Functions count -> latents float32 [count, ...] by the names of their rows.

    Args:
      sampler: Whose latents they are.
      latents: float32 [N, h, w, C] or [N, L], of training tiles.
      seed: Of what is drawn.

    Returns:
      `N(0, I)`; `gaussian`, of full covariance; and where scikit-learn is installed `mixture`: of
      pooled latents, and within a component Gaussian of full covariance.
    """
    draws: dict[str, Draw] = {
        "N(0, I)": lambda count: (
            _rng(seed, 0).standard_normal((count, *latents.shape[1:])).astype(np.float32)
        ),
        "gaussian": lambda count: gaussian(latents, count, _rng(seed, 1)),
    }
    if importlib.util.find_spec("sklearn") is not None and len(latents) >= 2 * FEWEST:
        draws["mixture"] = lambda count: mixture(latents, count, _rng(seed, 2))
    return draws


def gaussian(latents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples of the Gaussian with the mean and the full covariance of some latents.

    Random sums of their deviations have just that covariance, and nothing has to be factorised.

    Args:
      latents: float32 [N, ...].
      count: Of samples.
      rng: Of the sums.

    Returns:
      float32 [count, ...].
    """
    flat = latents.reshape(len(latents), -1)
    mean = flat.mean(axis=0)
    weights = rng.standard_normal((count, len(flat))) / np.sqrt(max(len(flat) - 1, 1))
    # Deviations sum to zero, so the mean may as well be taken out of the weights.
    weights -= weights.mean(axis=1, keepdims=True)
    made = mean + weights.astype(np.float32) @ flat
    return made.reshape(count, *latents.shape[1:])


def mixture(latents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples of a Gaussian mixture: which tiles resemble each other is told by pooled latents.

    Args:
      latents: float32 [N, ...].
      count: Of samples.
      rng: Of all draws.

    Returns:
      float32 [count, ...].
    """
    from sklearn.mixture import GaussianMixture

    features = pool(latents)
    components = min(MIXTURE, len(latents) // FEWEST)
    model = GaussianMixture(components, reg_covar=1e-4, random_state=0)
    found = model.fit_predict(features.astype(np.float64))
    kept = [c for c in range(components) if np.sum(found == c) >= FEWEST]
    sizes = np.array([np.sum(found == c) for c in kept])
    numbers = rng.multinomial(count, sizes / sizes.sum())
    parts = [
        gaussian(latents[found == c], number, rng)
        for c, number in zip(kept, numbers, strict=True)
        if number
    ]
    return rng.permutation(np.concatenate(parts))


def _rng(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])
