"""JPEG's grid: linear codecs of patches that know where in JPEG's blocks they begin.

Nearly every fundus photograph was a JPEG file once. Its blocks of 8 x 8 pixels were rounded, wave
by wave, so a patch that begins dy rows and dx columns into a block lies near a subspace of its own:
principal components for each of the 64 phases lose far less than those for all of them. A
photograph has one phase; which, its patches tell by what each phase's components would lose of
them all: a mixture of principal component analysers (Tipping and Bishop, 1999) whose choice is an
image's. What decodes has to know it too. So the components of the mixture lie apart in latent
space, by `codes`, and the mean of an image's latents tells which one it is.
"""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from vae.models.pca import HIGHEST, PCA

# Who knows of the grid.
ENCODER, BOTH = "encoder", "both"
WHO = ("", ENCODER, BOTH)
# Of JPEG's blocks, pixels; patches are as large.
BLOCK = 8
PHASES = BLOCK**2
# A phase is believed where it loses less than this share of what phases lose in the mean (1.5 dB).
# It is 1.6 to 4 dB in CHASE_DB1, IDRiD and HRF's better files; in the others, and in FIVES, which
# has no grid, 0.2 to 1.45.
SHARE = 10**-0.15
# So many of PCA's components, the first, all phases have: brightness, colours and slopes.
SHARED = 8
# Latent channels, the last ones, that show the phase, and by how much, in deviations: the mean of
# a tile's latents is 0.14 off in CHASE_DB1, and codes differ by 1.8 or more.
SHOWN, STEP = 16, 0.45
# At a bright edge a few latents are ten deviations large: they would drown all others.
CLIP = 2.0
# Latent channels that there must be: the first, brightness and slopes, have means of their own.
LEAST = 32
# How much steps across the grid stand out in a photograph that has one: CHASE_DB1 and IDRiD have 4
# and more deviations of the other steps, FIVES, which has none, up to 2.6.
STRONG = 3.5
# Tiles with a grid that components are fitted to, at most.
FITTED = 128


def codes() -> np.ndarray:
    """Where the components of the mixture lie: float32 [1 + PHASES, SHOWN]; no grid at zero."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    pairs = itertools.product(hadamard, hadamard)
    shown = [np.zeros(SHOWN), *(STEP * np.concatenate(pair) for pair in pairs)]
    return np.array(shown, np.float32)


def orthonormal(components: jax.Array) -> jax.Array:
    """Components that were stored in 16 bits, orthonormal again.

    What a phase keeps of a patch is a thousand times what it loses, so that a rounding of one part
    in ten thousand decides which phase seems to lose least. One step of Newton's for the polar
    decomposition (Bjorck and Bowie, 1971) squares the error.

    Args:
      components: float32 [PHASES, P, C], columns orthonormal to a thousandth.

    Returns:
      Likewise, to float32's precision.
    """
    gram = jnp.einsum("kpc,kpd->kcd", components, components, precision=HIGHEST)
    return jnp.matmul(components, 1.5 * jnp.eye(gram.shape[-1]) - 0.5 * gram, precision=HIGHEST)


def losses(patches: jax.Array, components: jax.Array) -> jax.Array:
    """What the components of each phase lose of each image's patches.

    Args:
      patches: float32 [B, h, w, P], without PCA's mean.
      components: float32 [PHASES, P, C], orthonormal columns.

    Returns:
      Sums of squares, float32 [B, PHASES].
    """
    scatter = jnp.einsum("bhwp,bhwq->bpq", patches, patches, precision=HIGHEST)
    kept = jnp.einsum("bpq,kqc->bkpc", scatter, components, precision=HIGHEST) * components
    return jnp.trace(scatter, axis1=1, axis2=2)[:, None] - kept.sum(axis=(2, 3))


def choose(lost: jax.Array | np.ndarray) -> jax.Array:
    """The phase of each image by its `losses`, or by the sums of its parts'.

    What training changes has no say in it, or phases would be believed ever more often.

    Args:
      lost: [B, PHASES].

    Returns:
      int32 [B]: 0 where no phase is believed, or one more than the phase.
    """
    found = lost.min(axis=-1) < SHARE * lost.mean(axis=-1)
    return jnp.where(found, 1 + lost.argmin(axis=-1), 0).astype(jnp.int32)


def analyse(patches: jax.Array, phase: jax.Array, components: jax.Array) -> jax.Array:
    """Codes of patches in the phase of their image; where it has none, of any.

    Args:
      patches: float32 [B, h, w, P], without PCA's mean.
      phase: int32 [B] or [1], of `choose`.
      components: float32 [PHASES, P, C].

    Returns:
      float32 [B, h, w, C].
    """
    own = components[jnp.maximum(phase - 1, 0)]
    return jnp.matmul(patches, own[:, None], precision=HIGHEST)


def synthesise(code: jax.Array, phase: jax.Array, components: jax.Array) -> jax.Array:
    """What `analyse` is the inverse of: float32 [B, h, w, C] -> [B, h, w, P], without the mean."""
    own = components[jnp.maximum(phase - 1, 0)].swapaxes(1, 2)
    return jnp.matmul(code, own[:, None], precision=HIGHEST)


def shown(phase: jax.Array, channels: int) -> jax.Array:
    """What is added to latents to show their phase: int32 [B] -> float32 [B, 1, 1, channels]."""
    codes_ = jnp.asarray(codes())[phase]
    return jnp.pad(codes_, ((0, 0), (channels - SHOWN, 0)))[:, None, None]


def read(z: jax.Array) -> jax.Array:
    """The phase that latents show by their mean: [B, h, w, C] -> int32 [B].

    It stands fast in rounded latents and in samples of the posterior.
    """
    marks = jnp.asarray(codes())
    mean = jnp.clip(z[..., -SHOWN:], -CLIP, CLIP).mean(axis=(1, 2))
    near = jnp.matmul(mean, marks.T, precision=HIGHEST) - 0.5 * jnp.square(marks).sum(axis=-1)
    return near.argmax(axis=-1).astype(jnp.int32)


def fit_grid(batches: Iterable[np.ndarray], pca: PCA) -> np.ndarray:
    """Principal components of the patches of each phase, in tiles that were JPEG files.

    First in those whose grid can be seen; then in those, too, that these components fit in one of
    the phases: the grid of a file of high quality cannot be seen.

    Args:
      batches: Tiles, uint8 [B, H, W, 3], 64 pixels a side or more; all are held at once.
      pca: Of all patches: its mean is taken off, its first components all phases share, and near
        its others each phase's are turned, so that a latent's channels mean the same, as far as
        they can.

    Returns:
      float32 [PHASES, P, C], orthonormal columns; PCA's own where no tile shows a grid.
    """
    tiles = list(itertools.chain.from_iterable(batches))
    phased = [(tile, first) for tile in tiles for first in [_seen(tile)] if first is not None]
    components = _fit(phased, pca)
    if not phased:
        return components
    phased = [
        (tile, first)
        for tile in tiles
        for first in [_fitted(tile, components, np.asarray(pca.mean))]
        if first is not None
    ]
    return _fit(phased, pca)


def _seen(tile: np.ndarray) -> tuple[int, int] | None:
    """The first row and column of a block, where the tile's grid can be seen."""
    first, strength = find_grid(tile)
    return first if strength >= STRONG else None


def _fitted(tile: np.ndarray, components: np.ndarray, mean: np.ndarray) -> tuple[int, int] | None:
    """The first row and column of a block, where the components of one phase are believed."""
    patches = _patches(tile, 0, 0) - mean
    scatter = patches.T @ patches
    kept = np.einsum("kpc,kpc->k", scatter @ components, components)
    phase = int(choose(np.trace(scatter) - kept[None])[0])
    if phase == 0:
        return None
    return -((phase - 1) // BLOCK) % BLOCK, -(phase - 1) % BLOCK


def _fit(phased: list[tuple[np.ndarray, tuple[int, int]]], pca: PCA) -> np.ndarray:
    """Components [PHASES, P, C] of tiles and where blocks begin in them."""
    size, channels = pca.components.shape
    mean, usual = np.asarray(pca.mean), np.asarray(pca.components, np.float64)
    shared, usual = usual[:, :SHARED], usual[:, SHARED:]
    fitted = np.empty((PHASES, size, channels))
    for phase, (dy, dx) in enumerate(itertools.product(range(BLOCK), repeat=2)):
        moment = np.zeros((size, size))
        for tile, (y, x) in phased[:FITTED]:
            patches = _patches(tile, (y + dy) % BLOCK, (x + dx) % BLOCK) - mean
            moment += patches.T @ patches
        rest = usual
        if phased:
            moment = moment - shared @ (shared.T @ moment)
            moment = moment - (moment @ shared) @ shared.T
            leading = np.linalg.eigh(moment)[1][:, : SHARED - channels - 1 : -1]
            # The rotation that brings them nearest to PCA's (Schoenemann, 1966).
            left, _, right = np.linalg.svd(leading.T @ usual)
            rest = leading @ (left @ right)
        fitted[phase] = np.concatenate([shared, rest], axis=1)
    return fitted.astype(np.float32)


def _patches(tile: np.ndarray, y: int, x: int) -> np.ndarray:
    """The patches of a tile from row y, column x on: float32 [N, P] in [-1, 1]."""
    part = tile[y:, x:]
    rows, columns = part.shape[0] // BLOCK, part.shape[1] // BLOCK
    part = part[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
    part = part.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    return part.astype(np.float32) / np.float32(127.5) - 1


def find_grid(tile: np.ndarray) -> tuple[tuple[int, int], float]:
    """Where JPEG's blocks begin in a tile, and how clearly.

    Args:
      tile: uint8 [H, W, 3].

    Returns:
      The first row and column, below BLOCK, and by how many deviations of the seven others the
      steps across those stand out, the lesser of the two.
    """
    first, strength = [], []
    for axis in (0, 1):
        pixels = np.moveaxis(tile.astype(np.float32), axis, 0)
        steps = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2))
        # A step that is larger than those beside it; that before pixel i + 2 is excess[i].
        excess = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
        means = np.array([excess[(i - 2) % BLOCK :: BLOCK].mean() for i in range(BLOCK)])
        at = int(means.argmax())
        others = np.delete(means, at)
        first.append(at)
        strength.append((means[at] - others.mean()) / max(others.std(), 1e-6))
    return (first[0], first[1]), float(min(strength))
