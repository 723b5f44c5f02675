import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import data as bundled

from vae.data.errors import DataError
from vae.data.fov import (
    UNKNOWN,
    FieldOfView,
    NoSurroundError,
    find_fov,
    fov_mask,
    lit_region,
    locate_fov,
)
from vae.data.synthetic import fundus_photograph


@pytest.fixture(scope="module")
def retina():
    return bundled.retina()


def disc(height, width, x, y, radius, level=120):
    image = np.full((height, width, 3), 3, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = (level, level // 2, level // 4)
    return image


def assert_close(found, x, y, radius, atol):
    np.testing.assert_allclose((found.x, found.y, found.radius), (x, y, radius), atol=atol)


@pytest.mark.parametrize(
    ("height", "width", "x", "y", "radius"),
    [
        (300, 300, 150, 148, 120),
        (480, 640, 320, 240, 300),  # cropped above and below by the image border
        (600, 360, 340, 300, 250),  # the left part
        (300, 300, 0, 0, 260),  # a quarter
        (200, 900, 450, 100, 90),  # small in a wide image
        (2000, 3000, 1490.3, 1010.6, 960),
        (90, 90, 45, 45, 40),
        (600, 600, 305, 295, 400),  # all but four corners
    ],
)
def test_discs_whole_and_cut(height, width, x, y, radius):
    found = find_fov(disc(height, width, x, y, radius))
    # About a third of a pixel of the reduced copy, in which the disc is searched.
    assert_close(found, x, y, radius, atol=max(1.0, 0.4 * max(height, width) / 720))
    assert found.top == pytest.approx(max(0, y - radius), abs=2.5)
    assert found.bottom == pytest.approx(min(height - 1, y + radius), abs=2.5)


def test_bars_that_cut_the_disc_flat(retina):
    image = retina.copy()
    image[:200] = 0
    image[1250:] = 4
    found = find_fov(image)
    assert_close(found, 704, 703, 697, atol=2.5)
    assert (found.top, found.bottom) == (200, 1249)


BARS = {
    "white": (255, 255, 255),
    "grey": (200, 200, 200),
    "dark grey": (40, 40, 40),
    "black": (0, 0, 0),
    "blue": (0, 0, 140),
    "brown, like the fundus": (120, 60, 30),
    "orange, like the fundus": (170, 75, 35),
}


def with_bar(image, side, depth, colour):
    """Returns the image with a bar of a given width on one side, with a caption across it."""
    turned = {"bottom": 0, "left": 1, "top": 2, "right": 3}[side]
    image = np.rot90(image, turned).copy()
    bar = image[-depth:]
    bar[:] = colour
    ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    cv2.putText(bar, "DOE, JOHN 1950-01-01", (150, depth - 30), 0, depth / 50, ink, depth // 18)
    return np.ascontiguousarray(np.rot90(image, -turned))


@pytest.mark.parametrize("side", ["bottom", "top", "left", "right"])
@pytest.mark.parametrize("colour", BARS.values(), ids=BARS)
def test_captions_of_any_colour_and_side_are_outside(retina, side, colour):
    image = with_bar(retina, side, 180, colour)
    inside = find_fov(image).mask(*image.shape[:2])
    bar = np.zeros(image.shape[:2], bool)
    bar[
        {
            "bottom": np.s_[-180:],
            "top": np.s_[:180],
            "left": np.s_[:, :180],
            "right": np.s_[:, -180:],
        }[side]
    ] = True
    assert not (inside & bar).any()
    fundus = find_fov(retina).mask(*image.shape[:2]) & ~bar
    # One or two rows next to the bar and the last pixels of the fitted circle may be missing.
    assert (inside & fundus).sum() > 0.99 * fundus.sum()


@pytest.mark.parametrize("turn", range(4))
def test_a_bar_with_the_colour_of_the_fundus(turn):
    image = disc(700, 900, 450, 300, 400)
    image[600:] = (120, 60, 30)
    cv2.putText(image, "NAME", (250, 660), 0, 1.5, (0, 0, 0), 3)
    inside = find_fov(np.ascontiguousarray(np.rot90(image, turn))).mask(
        *np.rot90(image, turn).shape[:2]
    )
    inside = np.rot90(inside, -turn)
    assert not inside[600:].any() and inside[590].any()


def test_bars_on_two_sides_and_blurred_by_jpeg(retina):
    image = with_bar(with_bar(retina, "bottom", 160, (255, 255, 255)), "right", 130, (0, 0, 0))
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])
    found = find_fov(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    assert_close(found, 704.3, 703.0, 697.5, atol=3)
    assert 1411 - 160 - 6 <= found.bottom < 1411 - 160
    assert 1411 - 130 - 6 <= found.right < 1411 - 130


def test_a_bar_below_a_cropped_disc_is_outside(retina):
    image = retina[:1390].copy()  # cropped within the last 3% of the radius
    for colour in ((255, 0, 0), (40, 40, 40), (255, 255, 255)):
        bar = np.full((120, image.shape[1], 3), colour, np.uint8)
        assert 1380 <= find_fov(np.vstack([image, bar])).bottom <= 1389
        top = find_fov(np.vstack([bar, image[::-1]])).top
        assert 120 <= top <= 130


def test_a_bar_beside_a_stretched_disc_is_outside(retina):
    image = cv2.resize(retina, None, fx=0.85, fy=1.0, interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image[150:-150])
    image[:, :100] = 30
    assert 100 <= locate_fov(image, max_lost_share=1.0).fov.left <= 106


def test_a_frame_is_ignored(retina):
    image = cv2.resize(retina, (600, 600), interpolation=cv2.INTER_AREA)
    cv2.rectangle(image, (0, 0), (599, 599), (255, 255, 0), 8)
    found = find_fov(image)
    assert_close(found, 299.2, 298.6, 296.6, atol=1)
    assert (found.top, found.bottom) == (found.left, found.right) == (6, 593)


def test_grain_is_no_bar(retina):
    small = cv2.resize(retina, (600, 600), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 25, small.shape)
    found = find_fov(np.clip(small + noise, 0, 255).astype(np.uint8))
    assert found.bottom - found.top > 580 and found.right - found.left > 580


def test_two_eyes_in_one_image_are_refused(retina):
    small = cv2.resize(retina, (500, 500), interpolation=cv2.INTER_AREA)
    for pair in (np.hstack([small, small[:, ::-1]]), np.vstack([small, small])):
        with pytest.raises(DataError, match="shows two fields of view"):
            find_fov(pair)


def test_lost_share_is_measured_and_limited(retina):
    assert locate_fov(retina).lost_share < 0.005
    image = disc(600, 900, 450, 300, 400)
    assert locate_fov(image).lost_share < 0.005
    stretched = cv2.resize(image, None, fx=1.1, fy=1, interpolation=cv2.INTER_AREA)
    with pytest.raises(DataError, match=r"1[5-9]% of the lit area lies outside .*stretched"):
        find_fov(stretched)
    found = locate_fov(stretched, max_lost_share=1.0)
    lit = stretched.max(axis=2) > 25
    lost = 1 - found.fov.mask(*lit.shape)[lit].mean()
    assert found.lost_share == pytest.approx(lost, abs=0.01) and lost > 0.15


def test_every_image_has_a_field_of_view_or_a_reason():
    rng = np.random.default_rng(128)
    for number in range(150):
        height, width = rng.integers(1, 500, 2)
        block = 8 if number % 2 else int(rng.integers(1, 40))
        coarse = rng.integers(0, 256, (height // block + 1, width // block + 1, 3), dtype=np.uint8)
        image = coarse.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
        try:
            assert find_fov(image).mask(height, width).any()
        except DataError as error:
            assert str(error)


@pytest.mark.parametrize("part", ["all", "left", "right", "top", "quarter"])
def test_parts_of_a_real_photograph(retina, part):
    cuts = {
        "all": np.s_[:, :],
        "left": np.s_[:, :846],
        "right": np.s_[:, 846:],
        "top": np.s_[:900, :],
        "quarter": np.s_[:700, :700],
    }
    found = find_fov(retina[cuts[part]])
    x = 704.3 - (846 if part == "right" else 0)
    assert_close(found, x, 703.0, 697.5, atol=2.5)


def test_the_fit_ignores_text_notches_shadows_and_tabs(retina):
    image = retina.copy()
    cv2.putText(image, "DOE, JOHN 1950-01-01", (10, 80), 0, 2, (255, 255, 255), 6)
    image[600:800, 1330:] = 0  # a notch in the edge
    image[1000:1100, :180] = 200  # a tab on the edge
    cv2.circle(image, (250, 1250), 200, (0, 0, 0), -1)  # a shadow
    assert_close(find_fov(image), 704.3, 703.0, 697.5, atol=2.5)


@pytest.mark.parametrize("gain", [0.12, 0.4])
def test_dark_photographs(retina, gain):
    found = find_fov((retina * gain).astype(np.uint8))
    assert_close(found, 704.3, 703.0, 697.0, atol=4)


def test_surround_that_glows(retina):
    image = np.maximum(retina, np.uint8(30))
    assert_close(find_fov(image), 704.3, 703.0, 697.0, atol=4)


@pytest.mark.parametrize("seed", range(4))
def test_procedural_photographs(seed):
    image = fundus_photograph(seed, 256)
    found = find_fov(image)
    assert_close(found, 127.5, 127.5, 120.3, atol=4)
    inside = found.mask(256, 256)
    assert (image[inside].max(axis=1) > 25).mean() > 0.97


def no_discs():
    rng = np.random.default_rng(0)
    square = np.zeros((300, 300, 3), np.uint8)
    square[50:250, 50:250] = 200
    ellipse = np.zeros((300, 500, 3), np.uint8)
    cv2.ellipse(ellipse, (250, 150), (220, 110), 0, 0, 360, (200, 100, 50), -1)
    return {
        "black": np.zeros((300, 300, 3), np.uint8),
        "white": np.full((300, 300, 3), 255, np.uint8),
        "dark noise": rng.integers(0, 20, (300, 300, 3), dtype=np.uint8),
        "noise": rng.integers(0, 256, (300, 300, 3), dtype=np.uint8),
        "square": square,
        "ellipse": ellipse,
        "pixel": np.zeros((1, 1, 3), np.uint8),
        "astronaut": bundled.astronaut(),
        "inside of a retina": bundled.retina()[400:900, 400:900],
    }


@pytest.mark.parametrize("kind", no_discs())
def test_pictures_without_a_disc_are_refused(kind):
    with pytest.raises(DataError, match=r"eye\.png: no field of view found"):
        find_fov(no_discs()[kind], "eye.png")


def test_images_lit_to_every_border():
    """A fully lit picture is accepted as a tile and refused as a photograph."""
    with pytest.raises(NoSurroundError):
        find_fov(no_discs()["inside of a retina"])
    with pytest.raises(DataError) as error:
        find_fov(no_discs()["ellipse"])
    assert not isinstance(error.value, NoSurroundError)


def test_mask_of_a_window_equals_the_window_of_the_mask():
    fov = FieldOfView(70.25, 40.5, 45.0, 10.0, 75.0, 30.0, 110.0)
    whole = fov.mask(90, 120)
    np.testing.assert_array_equal(fov.mask(30, 20, y=35, x=50), whole[35:65, 50:70])
    rows, columns = np.mgrid[:90, :120]
    expected = (np.hypot(columns - 70.25, rows - 40.5) <= 45) & (rows >= 10) & (rows <= 75)
    expected &= (columns >= 30) & (columns <= 110)
    np.testing.assert_array_equal(whole, expected)


def test_scaled_keeps_the_disc_on_the_pixels():
    image = disc(400, 400, 190.0, 205.0, 150)
    fov = FieldOfView(190.0, 205.0, 150.0, 55.0, 355.0, 40.0, 340.0).scaled(0.5)
    half = cv2.resize(image, (200, 200), interpolation=cv2.INTER_AREA)
    difference = (half[..., 0] > 60) ^ fov.mask(200, 200)
    assert difference.sum() < 0.01 * fov.mask(200, 200).sum()
    assert UNKNOWN.scaled(2.0) == UNKNOWN


def test_rounded_values_are_exact_in_float32():
    fov = FieldOfView(1234.5678, 987.123, 800.99, 186.2, 1788.0, 433.6, 2035.5).rounded()
    assert all(float(np.float32(v)) == v for v in (fov.x, fov.y, fov.radius, fov.top, fov.bottom))
    assert fov.x == pytest.approx(1234.5678, abs=1 / 32)


def test_lit_region_is_the_threshold_with_holes_filled():
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 60, (80, 90, 3), dtype=np.uint8), (0, 0), 1.0)
    expected = ndimage.binary_fill_holes(image.max(axis=2) > 25)
    np.testing.assert_array_equal(lit_region(image), expected)


def test_fov_mask_takes_the_circle_or_the_lit_region():
    image = disc(64, 64, 20, 20, 30)
    fov = FieldOfView(32.0, 32.0, 40.0, 0.0, 90.0, 0.0, 90.0)
    np.testing.assert_array_equal(fov_mask(fov, image, 10, 5), fov.mask(64, 64, 10, 5))
    np.testing.assert_array_equal(fov_mask(UNKNOWN, image), lit_region(image))
    assert not UNKNOWN.known
    with pytest.raises(ValueError, match="unknown"):
        UNKNOWN.mask(4, 4)
