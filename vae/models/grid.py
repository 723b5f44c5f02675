"""JPEG's grid: linear codecs of patches that know where in JPEG's blocks they begin.

Nearly every fundus photograph was a JPEG file once. Its blocks of 8 x 8 pixels were rounded, wave
by wave, so a patch that begins dy rows and dx columns into a block lies near a subspace of its own:
principal components for each of the 64 phases lose far less than those for all of them. A
photograph has one phase; which, its patches tell by what each phase's components would lose of
them: a mixture of principal component analysers (Tipping and Bishop, 1999). What decodes has to
know it too. So the components of the mixture lie apart in latent space, by `codes`, and the mean of
some latents tells which one it is.
"""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from vae.models.pca import HIGHEST, PCA

# Of JPEG's blocks, pixels; patches are as large.
BLOCK = 8
PHASES = BLOCK**2
# Patches, or latents, to each side that tell the phase together.
REACH = 6
# So often the phases that were chosen are replaced by what would be read of them.
ROUNDS = 2
ENCODER_REACH = REACH * (1 + ROUNDS)
# A phase is believed where it leaves less than this share of what phases leave in the mean (1.25
# dB). In CHASE_DB1 and IDRiD it is 1.2 to 7 dB; in FIVES, which has no grid, less than 1.15 but for
# one place in fifty.
SHARE = 10**-0.125
# And less than this share of what the linear codec with overlap leaves, whose conv paths gain more.
ADVANTAGE = 10**-0.02
# So many of PCA's components, the first, all phases have: brightness, colours and slopes. Where a
# phase is read as another, they are right.
SHARED = 8
# Latent channels, the last ones, that show the phase, and by how much, in deviations: the mean of
# 169 latents is 0.14 off in CHASE_DB1, and codes differ by 1.8 or more.
SHOWN, STEP = 16, 0.45
CLIP = 2.0
# Latent channels that there must be: the first, brightness and slopes, have means of their own.
LEAST = 32
# How much steps across the grid stand out in a photograph that has one: CHASE_DB1 and IDRiD have 4
# and more deviations of the other steps, FIVES, which has none, up to 2.6.
STRONG = 3.5
# Tiles with a grid that components are fitted to, at most.
FITTED = 256


def codes() -> np.ndarray:
    """Where the components of the mixture lie: float32 [1 + PHASES, SHOWN]; no grid at zero."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    pairs = itertools.product(hadamard, hadamard)
    shown = [np.zeros(SHOWN), *(STEP * np.concatenate(pair) for pair in pairs)]
    return np.array(shown, np.float32)


def project(patches: jax.Array, components: jax.Array) -> jax.Array:
    """The code of each patch in each phase.

    Args:
      patches: float32 [B, h, w, P], without PCA's mean.
      components: float32 [PHASES, P, C], orthonormal columns.

    Returns:
      float32 [B, h, w, PHASES, C].
    """
    phases, patch, channels = components.shape
    kernel = components.transpose(1, 0, 2).reshape(patch, phases * channels)
    made = jnp.matmul(patches, kernel, precision=HIGHEST)
    return made.reshape(*patches.shape[:-1], phases, channels)


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


def choose(patches: jax.Array, coded: jax.Array, overlapped: jax.Array) -> jax.Array:
    """The phase of each patch, judged by those within `REACH` of it.

    Args:
      patches: float32 [B, h, w, P], without PCA's mean.
      coded: float32 [B, h, w, PHASES, C], of `project`.
      overlapped: float32 [B, h, w, P], what the linear codec with overlap makes of the patches.

    Returns:
      int32 [B, h, w]: 0 where no phase is believed, or one more than the phase.
    """
    # Of orthonormal components: what is not kept.
    lost = jnp.square(patches).sum(axis=-1, keepdims=True) - jnp.square(coded).sum(axis=-1)
    lost = _around(lost)
    least = lost.min(axis=-1)
    other = _around(jnp.square(patches - overlapped).sum(axis=-1, keepdims=True))[..., 0]
    found = (least < ADVANTAGE * other) & (least < SHARE * lost.mean(axis=-1))
    return jnp.where(found, 1 + lost.argmin(axis=-1), 0).astype(jnp.int32)


def pick(coded: jax.Array, phase: jax.Array) -> jax.Array:
    """The code of each patch in its phase: [B, h, w, PHASES, C] and [B, h, w] -> [B, h, w, C]."""
    index = jnp.maximum(phase - 1, 0)[..., None, None]
    return jnp.take_along_axis(coded, index, axis=-2)[..., 0, :]


def synthesise(code: jax.Array, phase: jax.Array, components: jax.Array) -> jax.Array:
    """Patches from codes in their phases, nothing where there is none.

    Args:
      code: float32 [B, h, w, C].
      phase: int32 [B, h, w], of `choose`.
      components: float32 [PHASES, P, C].

    Returns:
      float32 [B, h, w, P], without PCA's mean.
    """
    phases, patch, channels = components.shape
    apart = jax.nn.one_hot(phase - 1, phases)[..., None] * code[..., None, :]
    kernel = components.transpose(0, 2, 1).reshape(phases * channels, patch)
    apart = apart.reshape(*code.shape[:-1], phases * channels)
    return jnp.matmul(apart, kernel, precision=HIGHEST)


def shown(phase: jax.Array, channels: int) -> jax.Array:
    """What is added to latents to show their phase: [B, h, w] -> float32 [B, h, w, channels]."""
    return jnp.pad(jnp.asarray(codes())[phase], ((0, 0),) * 3 + ((channels - SHOWN, 0),))


def read(z: jax.Array) -> jax.Array:
    """The phase that latents show, judged by those within `REACH`: [B, h, w, C] -> int32 [B, h, w].

    It stands fast in rounded latents and in samples of the posterior.
    """
    marks = jnp.asarray(codes())
    rows, columns = (
        1 + np.minimum(REACH, np.arange(side)) + np.minimum(REACH, np.arange(side)[::-1])
        for side in z.shape[1:3]
    )
    count = (rows[:, None] * columns).astype(np.float32)
    # At a bright edge a few latents are ten deviations large: they would drown all others.
    mean = _around(jnp.clip(z[..., -SHOWN:], -CLIP, CLIP)) / count[..., None]
    near = jnp.matmul(mean, marks.T, precision=HIGHEST) - 0.5 * jnp.square(marks).sum(axis=-1)
    return near.argmax(axis=-1).astype(jnp.int32)


def _around(x: jax.Array) -> jax.Array:
    """Sums over the square of `REACH` around each position of [B, h, w, C]; nothing is beyond."""
    side, zero = 2 * REACH + 1, np.zeros((), x.dtype)
    for window in ((1, side, 1, 1), (1, 1, side, 1)):
        x = jax.lax.reduce_window(x, zero, jax.lax.add, window, (1,) * 4, "SAME")
    return x


def fit_grid(batches: Iterable[np.ndarray], pca: PCA) -> np.ndarray:
    """Principal components of the patches of each phase, in tiles whose grid can be seen.

    Args:
      batches: Tiles, uint8 [B, H, W, 3], 64 pixels a side or more.
      pca: Of all patches: its mean is taken off, its first components all phases share, and near
        its others each phase's are turned, so that a latent's channels mean the same, as far as
        they can.

    Returns:
      float32 [PHASES, P, C], orthonormal columns; PCA's own where no tile shows a grid.
    """
    size, channels = pca.components.shape
    mean, usual = np.asarray(pca.mean), np.asarray(pca.components, np.float64)
    moments, found = np.zeros((PHASES, size, size)), 0
    for tile in itertools.chain.from_iterable(batches):
        if found == FITTED:
            break
        (y, x), strength = find_grid(tile)
        if strength < STRONG:
            continue
        found += 1
        tile = tile.astype(np.float32) / np.float32(127.5) - 1
        for phase, (dy, dx) in enumerate(itertools.product(range(BLOCK), repeat=2)):
            part = tile[(y + dy) % BLOCK :, (x + dx) % BLOCK :]
            rows, columns = part.shape[0] // BLOCK, part.shape[1] // BLOCK
            part = part[: rows * BLOCK, : columns * BLOCK]
            part = part.reshape(rows, BLOCK, columns, BLOCK, 3).transpose(0, 2, 1, 3, 4)
            part = part.reshape(-1, size) - mean
            moments[phase] += part.T @ part
    fitted = np.empty((PHASES, size, channels))
    for phase, moment in enumerate(moments):
        shared, rest = usual[:, :SHARED], usual[:, SHARED:]
        if found:
            moment = moment - shared @ (shared.T @ moment)
            moment = moment - (moment @ shared) @ shared.T
            leading = np.linalg.eigh(moment)[1][:, : SHARED - channels - 1 : -1]
            # The rotation that brings them nearest to PCA's (Schoenemann, 1966).
            left, _, right = np.linalg.svd(leading.T @ rest)
            rest = leading @ (left @ right)
        fitted[phase] = np.concatenate([shared, rest], axis=1)
    return fitted.astype(np.float32)


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
