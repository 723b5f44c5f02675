import numpy as np
import pytest

from vae.data.images import read_image
from vae.data.synthetic import fundus_photograph, write_photographs


@pytest.mark.parametrize("size", [48, 256])
def test_the_same_seed_gives_the_same_image(size):
    first, again = fundus_photograph(5, size), fundus_photograph(5, size)
    assert first.shape == (size, size, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != fundus_photograph(6, size)).any()


def test_images_have_the_parts_of_a_fundus():
    image = fundus_photograph(1, 256, noise=0.0).astype(float)
    rows, columns = np.mgrid[:256, :256]
    distance = np.hypot(rows - 127.5, columns - 127.5)
    inside, outside = image[distance < 110], image[distance > 126]
    assert outside.max() <= 5
    assert (inside.max(axis=1) > 25).all()
    red, green, blue = inside.mean(axis=0)
    assert red > green > blue
    brightest = np.argmax(np.where(distance < 100, image[..., 1], 0.0)) % 256
    assert brightest > 140  # the optic disc of a right eye
    assert image[distance < 40].mean() > image[(distance > 95) & (distance < 110)].mean()


def test_left_eye_and_noise():
    image = fundus_photograph(1, 256, left=True, noise=0.0)
    brightest = np.argmax(image[..., 1].astype(float) * (image[..., 0] > 60)) % 256
    assert brightest < 116
    noisy = fundus_photograph(1, 256, left=True, noise=4.0)
    spread = (noisy.astype(float) - image)[100:150, 100:150].std()
    assert 3.5 < spread < 4.5


def test_write_photographs_names_and_labels(tmp_path):
    paths = write_photographs(tmp_path, patients=3, eyes=2, size=48, labels=("a", "b"))
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names == [
        *("a/p00_R.png", "a/p00_L.png"),
        *("b/p01_R.png", "b/p01_L.png"),
        *("a/p02_R.png", "a/p02_L.png"),
    ]
    np.testing.assert_array_equal(read_image(paths[0]), fundus_photograph((0, 0, 0), 48))
