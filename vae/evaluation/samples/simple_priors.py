"""Simple priors fitted to training latents, as baselines of a prior."""

import importlib.util
from collections.abc import Callable

import numpy as np

from vae.inference.embedding import pool

MIXTURE = 16  # components
# Minimum number of tiles per component: fewer tiles do not determine a covariance.
FEWEST = 8

Draw = Callable[[int], np.ndarray]


def baselines(latents: np.ndarray, seed: int) -> dict[str, Draw]:
    """Returns functions count -> latents float32 [count, ...], by the names of their rows.

    Args:
      latents: float32 [N, h, w, C] or [N, L], latents of training tiles.
      seed: Seed of the draws.

    Returns:
      `N(0, I)`; `gaussian`, with full covariance; and, if scikit-learn is installed, `mixture`,
      whose components are found on pooled latents and are Gaussians with full covariance.
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
    """Samples the Gaussian with the mean and the full covariance of the latents.

    Random sums of the deviations from the mean have this covariance, without a factorisation.

    Args:
      latents: float32 [N, ...].
      count: Number of samples.
      rng: Generator of the weights.

    Returns:
      float32 [count, ...].
    """
    flat = latents.reshape(len(latents), -1)
    mean = flat.mean(axis=0)
    weights = rng.standard_normal((count, len(flat))) / np.sqrt(max(len(flat) - 1, 1))
    # Deviations from the mean sum to zero; centring the weights is the same as centring latents.
    weights -= weights.mean(axis=1, keepdims=True)
    made = mean + weights.astype(np.float32) @ flat
    return made.reshape(count, *latents.shape[1:])


def mixture(latents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples a Gaussian mixture whose components are found on pooled latents.

    Args:
      latents: float32 [N, ...].
      count: Number of samples.
      rng: Generator of all draws.

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
