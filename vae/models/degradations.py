"""Degradations of fundus photographs, as functions of clean photographs.

Every degradation is a pure function of (image, geometry, severity, key). Severity 0 is the
identity, and severity 1 gives a photograph that a clinic would repeat. Light, haze, spots and
colour are drawn from the key in coordinates of the field of view. Grain and block grids are defined
in the photograph's pixels. Two tiles of one photograph with one key therefore agree where they
overlap. Only blurs and blocks differ near a tile's border, for lack of the neighbouring pixels.

Light is added in linear intensities, approximated as sRGB values to the power of `GAMMA`. The
families are those of Shen et al., "Modeling and enhancing low-quality retinal fundus images"
(2021): disturbed light transmission, blur, artefacts. Each formula has its own source below.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax.extend.random import threefry_2x32

from vae.models.filters import REACH, along_axes, convolve, disc, gaussian, line

__all__ = [
    "BLOCK",
    "BLURS",
    "DEGRADATIONS",
    "GAMMA",
    "REACH",
    "WHOLE",
    "FovGeometry",
    "degrade",
    "jpeg_at_quality",
    "noise",
]

GAMMA = 2.2
SPOTS = 6
# Side of JPEG's blocks in pixels; a multiple of the largest factor of `downsampling`, 4.
BLOCK = 8
# Linear RGB of the light that a clouded lens scatters: a warm grey.
VEIL = np.array([0.55, 0.36, 0.22], np.float32)
# ITU-T T.81, tables K.1 and K.2: luminance and chrominance at quality 50.
LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]).reshape(8, 8)  # fmt: skip
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
TABLES = np.stack([LUMINANCE, CHROMINANCE, CHROMINANCE]).astype(np.float32)
# BT.601 luma and chroma from RGB, as JFIF defines them.
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
FROM_YCC = np.linalg.inv(TO_YCC)
MIDDLE = np.array([128, 0, 0], np.float32)[:, None, None]
# The orthonormal cosine transform of 8 values, [frequency, sample].
DCT = scipy.fft.dct(np.eye(8), axis=0, norm="ortho").astype(np.float32)


@flax.struct.dataclass
class FovGeometry:
    """The position of a tile in its photograph.

    Attributes:
      y: int32 [], first row of the tile in the photograph, pixels.
      x: int32 [], first column of the tile.
      fov_y: float32 [], row of the FOV centre, pixels.
      fov_x: float32 [], column of the FOV centre, pixels.
      fov_radius: float32 [], pixels, positive.
      step: float32 [], photograph pixels per pixel of this image: 1, or more if it was reduced.
    """

    y: jax.Array
    x: jax.Array
    fov_y: jax.Array
    fov_x: jax.Array
    fov_radius: jax.Array
    step: jax.Array | float = 1.0

    def grid(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Returns FOV coordinates (v, u), float32 [H, W] each: 0 at the centre, 1 at the rim."""
        rows = (self.y + jnp.arange(shape[0]) - self.fov_y) / self.fov_radius
        columns = (self.x + jnp.arange(shape[1]) - self.fov_x) / self.fov_radius
        return jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns, shape)


# (image [3, H, W], geometry, severity [], key) -> the same shape. Channels come first, because XLA
# on CPUs does not vectorise loops over fields shared by trailing channels. The functions of `LIGHT`
# take and return linear light, the others sRGB values; both lie in [0, 1].
Degradation = Callable[[jax.Array, FovGeometry, jax.Array, jax.Array], jax.Array]


def illumination(
    light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Simulates a weak or misaligned flash: dim light, a gradient, and falloff towards the rim.

    One of the three has the full severity. Each of the others is present in two photographs of
    five, with a random strength. The whole image is dimmed by up to 85%. The gradient removes up to
    85% of the light on one side. The falloff is the cosine-fourth law (Reiss, 1945) at up to 50
    degrees off axis.
    """
    angle_key, main_key, present_key, strength_key = jax.random.split(key, 4)
    v, u = geometry.grid(light.shape[1:])
    angle = jax.random.uniform(angle_key, maxval=2 * np.pi)
    main = jnp.arange(3) == jax.random.randint(main_key, (), 0, 3)
    present = jax.random.bernoulli(present_key, 0.4, (3,))
    strengths = jnp.where(main, 1.0, present * jax.random.uniform(strength_key, (3,)))
    dim, slope, fall = severity * strengths
    across = 0.5 + 0.5 * (v * jnp.sin(angle) + u * jnp.cos(angle))
    falloff = (1 + (np.tan(np.radians(50)) * fall) ** 2 * (v**2 + u**2)) ** -2
    return light * ((1 - 0.85 * dim) * falloff * (1 - 0.85 * slope * jnp.clip(across, 0, 1)))


def haze(light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array) -> jax.Array:
    """Simulates a cloudy lens: scattered light and a veil over the image.

    I' = t I_s + (1 - t) A is the cataract model of Peli and Peli (1989). The transmission t varies
    over the photograph, down to 0.3. I_s is scattered by a wide kernel. A is the veil's colour.
    """
    field_key, veil_key, level_key = jax.random.split(key, 3)
    density = 0.6 + 0.4 * _smooth_field(field_key, geometry, light.shape[1:])
    transmission = 1 - 0.7 * severity * density
    veil = jax.random.uniform(veil_key, (3,), minval=0.8, maxval=1.2) * VEIL
    veil *= jax.random.uniform(level_key, minval=0.7, maxval=1.1)
    wide = convolve(light, gaussian(jnp.maximum(5.0 * severity / geometry.step, 0.1)))
    scattered = light + 0.5 * severity * (wide - light)
    return transmission * scattered + (1 - transmission) * veil[:, None, None]


def defocus(
    light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Simulates defocus: a uniform disc of up to 6 pixels radius (geometrical optics)."""
    del geometry, key
    return convolve(light, disc(6.0 * severity))


def motion(
    light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Simulates eye movement during the exposure: a line of up to 20 pixels in one direction."""
    del geometry
    angle = jax.random.uniform(key, maxval=np.pi)
    return convolve(light, line(20.0 * severity, angle))


def noise(
    image: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Adds photon and read noise: variance a I + b in linear light (Foi et al., 2008).

    a is at most 0.004 (250 photons at white), b at most 0.01 squared. Each pixel of the photograph
    has its own noise value, the same in every tile.
    """
    light = _linear(image)
    variance = severity**2 * (0.004 * light + 0.01**2)
    return _coded(light + jnp.sqrt(variance) * _grain(key, geometry, image.shape))


def spots(
    light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Adds dust and reflections: six soft discs, dark or bright, of 2 to 12% of the FOV radius."""
    keys = jax.random.split(key, 5)
    v, u = geometry.grid(light.shape[1:])
    distance = jnp.sqrt(jax.random.uniform(keys[0], (SPOTS,)))
    angle = jax.random.uniform(keys[1], (SPOTS,), maxval=2 * np.pi)
    radius = jax.random.uniform(keys[2], (SPOTS,), minval=0.02, maxval=0.12)
    bright = jax.random.bernoulli(keys[3], 0.5, (SPOTS,))
    strength = severity * jax.random.uniform(keys[4], (SPOTS,), minval=0.3, maxval=0.8)
    for i in range(SPOTS):
        gap = jnp.hypot(v - distance[i] * jnp.sin(angle[i]), u - distance[i] * jnp.cos(angle[i]))
        inside = strength[i] * jax.nn.sigmoid(6 * (1 - gap / radius[i]))
        light += inside * (jnp.where(bright[i], 0.7, 0.02) - light)
    return light


def colour_cast(
    light: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Changes the white point (von Kries, 1902): gains 1.6^(severity (g - mean g)), |g| <= 1."""
    del geometry
    gains = jax.random.uniform(key, (3,), minval=-1, maxval=1)
    return light * (1.6 ** (severity * (gains - gains.mean())))[:, None, None]


def low_contrast(
    image: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Lowers contrast: moves values by up to 70% towards a grey level between 0.25 and 0.55."""
    del geometry
    level = jax.random.uniform(key, minval=0.25, maxval=0.55)
    return image + 0.7 * severity * (level - image)


def downsampling(
    image: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array
) -> jax.Array:
    """Halves the resolution, or quarters it above severity 0.5, and enlarges the result."""
    del key

    def reduced(blocks):
        sides = blocks.shape[1:]
        rows, columns = (
            jnp.where(severity > 0.5, _enlarged(side, 4), _enlarged(side, 2)) for side in sides
        )
        return along_axes(rows, columns, blocks)

    return _on_grid(image, geometry, reduced)


@functools.cache
def _enlarged(side: int, factor: int) -> np.ndarray:
    """Returns the matrix that reduces an axis and enlarges it again: float32 [side, side].

    It is linear interpolation with antialiasing followed by cubic interpolation, both linear maps.
    """
    with jax.ensure_compile_time_eval():
        small = jax.image.resize(jnp.eye(side), (side // factor, side), "linear")
        return np.asarray(jax.image.resize(small, (side, side), "cubic"))


def jpeg(image: jax.Array, geometry: FovGeometry, severity: jax.Array, key: jax.Array) -> jax.Array:
    """Encodes as JPEG at quality 90 to 25 (`jpeg_at_quality`)."""
    del key
    return jpeg_at_quality(image, geometry, 90 - 65 * severity)


def jpeg_at_quality(image: jax.Array, geometry: FovGeometry, quality: jax.Array) -> jax.Array:
    """Quantises the 8 x 8 blocks of JPEG (ITU-T T.81), without subsampling.

    Args:
      image: [3, H, W], sRGB in [0, 1].
      geometry: Position of the tile, which places the block grid.
      quality: float32 [], 1 to 100.
    """
    # Quality scaling as in the Independent JPEG Group's library.
    scale = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
    steps = jnp.clip(jnp.round(TABLES * scale), 1, 255)  # [3, 8, 8]

    def coded(blocks):
        # Axes: block row, row in the block, column. This gives products of large matrices.
        _, height, width = blocks.shape
        values = jnp.einsum("dc,cyx->dyx", TO_YCC, 255 * blocks) - MIDDLE
        waves = jnp.einsum("ky,cayx->cakx", DCT, values.reshape(3, height // 8, 8, width))
        waves = waves.reshape(3, height // 8, 8, width // 8, 8) @ DCT.T
        waves = steps[:, None, :, None] * jnp.round(waves / steps[:, None, :, None])
        values = (waves @ DCT).reshape(3, height // 8, 8, width)
        values = jnp.einsum("ky,cakx->cayx", DCT, values).reshape(3, height, width)
        return jnp.einsum("dc,cyx->dyx", FROM_YCC, values + MIDDLE) / 255

    return _on_grid(image, geometry, coded)


# In the physical order: eye, optics, sensor, file.
DEGRADATIONS: dict[str, Degradation] = {
    "haze": haze,
    "illumination": illumination,
    "colour_cast": colour_cast,
    "defocus": defocus,
    "motion": motion,
    "spots": spots,
    "low_contrast": low_contrast,
    "noise": noise,
    "downsampling": downsampling,
    "jpeg": jpeg,
}
# Degradations of the light, before it is encoded as sRGB values.
LIGHT = ("haze", "illumination", "colour_cast", "defocus", "motion", "spots")
# Degradations that a linear filter can undo.
BLURS = ("defocus", "motion", "downsampling")
# Degradations that are visible in a thumbnail.
WHOLE = ("haze", "illumination", "colour_cast", "spots", "low_contrast")


def degrade(
    image: jax.Array,
    fov: jax.Array,
    geometry: FovGeometry,
    severities: dict[str, jax.Array | float],
    key: jax.Array,
) -> jax.Array:
    """Applies degradations in the order of `DEGRADATIONS`.

    Args:
      image: float32 [H, W, 3], sRGB in [0, 1].
      fov: bool [H, W], True inside the field of view; pixels outside do not change.
      geometry: Position of the tile.
      severities: Name of a degradation -> [] in [0, 1]; degradations without an entry are skipped.
      key: Random key of the photograph, the same for all its tiles.

    Returns:
      float32 [H, W, 3] in [0, 1]; exactly `image` if all severities are 0.

    Raises:
      ValueError: A name is unknown.
    """
    if unknown := set(severities) - set(DEGRADATIONS):
        raise ValueError(f"no degradation {sorted(unknown)}; there are {', '.join(DEGRADATIONS)}")
    severities = {name: jnp.asarray(value, jnp.float32) for name, value in severities.items()}
    image = image.transpose(2, 0, 1)

    def through(names, made):
        for number, (name, apply) in enumerate(DEGRADATIONS.items()):
            if name in names and name in severities:
                severity = severities[name]
                changed = apply(made, geometry, severity, jax.random.fold_in(key, number))
                made = jnp.where((severity > 0) & fov, jnp.clip(changed, 0, 1), made)
        return made

    made = image
    if here := [severities[name] for name in LIGHT if name in severities]:
        # One conversion to linear light and back: it costs more than most of the degradations.
        light = _coded(through(LIGHT, _linear(image)))
        made = jnp.where((jnp.stack(here).max() > 0) & fov, light, made)
    made = through([name for name in DEGRADATIONS if name not in LIGHT], made)
    return made.transpose(1, 2, 0)


def _linear(image: jax.Array) -> jax.Array:
    return _power(jnp.maximum(image, 0), GAMMA)


def _coded(light: jax.Array) -> jax.Array:
    return _power(jnp.clip(light, 0, 1), 1 / GAMMA)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """Returns base ** exponent for base >= 0, 4 times as fast as XLA's scalar calls on CPUs."""
    return jnp.exp(exponent * jnp.log(base))


def _smooth_field(key: jax.Array, geometry: FovGeometry, shape: tuple[int, ...]) -> jax.Array:
    """Returns a random field over the photograph in [-1, 1], float32 [H, W]: four long waves."""
    v, u = geometry.grid(shape)
    wave_key, phase_key = jax.random.split(key)
    waves = jax.random.uniform(wave_key, (4, 2), minval=-2.5, maxval=2.5)
    phases = jax.random.uniform(phase_key, (4,), maxval=2 * np.pi)
    return sum(jnp.sin(w[0] * v + w[1] * u + p) for w, p in zip(waves, phases, strict=True)) / 4


def _grain(key: jax.Array, geometry: FovGeometry, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard normal noise [C, H, W], a function of the key and the photograph's pixel."""
    rows = (geometry.y + jnp.arange(shape[1])).astype(jnp.uint32)
    columns = (geometry.x + jnp.arange(shape[2])).astype(jnp.uint32)
    channels = jnp.arange(shape[0], dtype=jnp.uint32)[:, None, None]
    rows = jnp.broadcast_to(rows[:, None], shape).ravel()
    columns = jnp.broadcast_to(columns * shape[0] + channels, shape).ravel()
    # Threefry hashes pairs of words, one from each half of its input.
    bits = threefry_2x32(jax.random.key_data(key), jnp.concatenate([rows, columns]))
    uniform = ((bits[: rows.size] >> 9).astype(jnp.float32) + 0.5) / 2**23
    return (np.sqrt(2) * jax.lax.erf_inv(2 * uniform - 1)).reshape(shape)


def _on_grid(
    image: jax.Array, geometry: FovGeometry, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Applies a function on 8 x 8 blocks, aligned with the photograph's block grid.

    Args:
      image: [C, H, W].
      geometry: Position of the tile.
      function: [C, h, w] -> the same shape; h and w are divisible by 8.
    """
    side = BLOCK
    channels, height, width = image.shape
    border = ((0, 0), (side, 2 * side - height % side), (side, 2 * side - width % side))
    padded = jnp.pad(image, border, mode="edge")
    # Offset of the tile's first pixel within its block.
    inside = [geometry.y % side, geometry.x % side]
    begin = [0, side - inside[0], side - inside[1]]
    cut = (channels, height + 2 * side - height % side, width + 2 * side - width % side)
    made = function(jax.lax.dynamic_slice(padded, begin, cut))
    return jax.lax.dynamic_slice(made, [0, *inside], image.shape)
