"""Detection of one-colour photographs, on degraded and greyed copies of a real one."""

import cv2
import numpy as np
import pytest
from skimage import data as bundled

from vae.data.fov import UNKNOWN, find_fov
from vae.inference.one_colour import is_one_colour

RETINA = cv2.resize(bundled.retina(), (700, 700), interpolation=cv2.INTER_AREA)
FOV = find_fov(RETINA)
GREY = cv2.cvtColor(RETINA, cv2.COLOR_RGB2GRAY)[..., None].astype(float)


def pixels(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def saved_again(image, quality=50):
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


ONE = {
    "grey": GREY * [1, 1, 1],
    "green channel as grey": RETINA[..., 1:2] * [1, 1, 1],
    "green channel alone": RETINA * [0, 1, 0],
    "sepia": GREY * [1, 0.85, 0.65],
    "grey under a veil": 0.3 * GREY + [130, 127, 122],
    "constant": np.full(RETINA.shape, (120, 70, 40)),
}
SEVERAL = {
    "colour": RETINA,
    "dark": 0.1 * RETINA,
    "gamma": 255 * (RETINA / 255) ** 2.2,
    "hazy": 0.2 * RETINA + [150, 147, 142],
    "pale": 0.5 * RETINA + 0.5 * GREY,
    "pale and dark": 0.2 * RETINA + 0.2 * GREY,
    "pale and hazy": 0.2 * (RETINA + GREY) + 0.6 * 185,
}


@pytest.mark.parametrize("coded", [False, True], ids=["", "JPEG quality 50"])
@pytest.mark.parametrize("fov", [FOV, UNKNOWN], ids=["disc", "unknown"])
@pytest.mark.parametrize("name", [*ONE, *SEVERAL])
def test_one_colour_is_detected(name, fov, coded):
    image = pixels((ONE | SEVERAL)[name])
    assert is_one_colour(saved_again(image) if coded else image, fov) == (name in ONE)


def test_dark_tints_without_jpeg_are_detected():
    assert is_one_colour(pixels(GREY * [0.25, 0.21, 0.16]), FOV)


def test_pixels_outside_the_field_of_view_are_ignored():
    image = pixels(ONE["grey"])
    image[~FOV.mask(*image.shape[:2])] = (0, 0, 255)
    assert is_one_colour(image, FOV)
    assert not is_one_colour(image, UNKNOWN)


def test_black_and_tiny_pictures():
    assert not is_one_colour(np.zeros((48, 64, 3), np.uint8), UNKNOWN)
    rng = np.random.default_rng(0)
    assert not is_one_colour(rng.integers(60, 200, (5, 7, 3), np.uint8), UNKNOWN)
    assert is_one_colour(np.repeat(rng.integers(60, 200, (5, 7, 1), np.uint8), 3, -1), UNKNOWN)
