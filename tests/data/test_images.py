import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from data.errors import DataError, UsageError
from data.files import write_beside
from data.images import decode_image, read_image, write_image

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_lossless_formats_keep_their_values(kind):
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(PICTURE), kind), "x"), PICTURE
    )


def test_grey_becomes_rgb():
    grey = PICTURE[..., 0]
    decoded = decode_image(encode(Image.fromarray(grey)), "x")
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


def test_palette_and_one_bit_become_rgb():
    assert decode_image(encode(Image.fromarray(PICTURE).convert("P")), "x").shape == PICTURE.shape
    bits = decode_image(encode(Image.fromarray(PICTURE).convert("1")), "x")
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("alpha", [1, 128, 255])
def test_alpha_is_composited_on_black(alpha):
    picture = Image.fromarray(PICTURE)
    picture.putalpha(alpha)
    expected = np.floor(PICTURE.astype(float) * alpha / 255 + 0.5)
    np.testing.assert_array_equal(decode_image(encode(picture), "x"), expected)


def test_cmyk_is_converted():
    red = Image.new("RGB", (32, 32), (220, 30, 20)).convert("CMYK")
    decoded = decode_image(encode(red, "JPEG", quality=95), "x")
    assert decoded.shape == (32, 32, 3)
    np.testing.assert_allclose(decoded[16, 16], (220, 30, 20), atol=6)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_is_scaled(kind, channels):
    import cv2

    wide = np.random.default_rng(1).integers(0, 65536, (20, 20, channels), dtype=np.uint16)
    wide[..., 3:] = 65535  # opaque
    _, encoded = cv2.imencode(kind, wide)
    decoded = decode_image(encoded.tobytes(), "x")
    expected = np.rint(wide[..., :3] / 257.0).astype(np.uint8)
    expected = expected[..., ::-1] if channels > 1 else np.repeat(expected, 3, axis=2)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("top", [300, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_wide_ppm_is_scaled_by_its_largest_value(top, channels):
    wide = np.random.default_rng(1).integers(0, top + 1, (20, 30, channels)).astype(">u2")
    kind = b"P6" if channels == 3 else b"P5"
    encoded = kind + b"\n# a camera's comment\n30 20\n%d\n" % top + wide.tobytes()
    expected = np.floor(wide * (255 / top) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encoded, "x"), np.repeat(expected, 3 // channels, 2))
    with pytest.raises(DataError, match="x: cannot be decoded"):
        decode_image(encoded[:-1], "x")


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, undo, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(PICTURE), kind, exif=exif)
    np.testing.assert_array_equal(decode_image(encoded, "x"), undo(PICTURE))


def swapped_profile() -> bytes:
    """An RGB profile whose red and blue primaries are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    profile = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    return profile


def test_colour_profile_is_converted_to_srgb():
    encoded = encode(Image.fromarray(PICTURE), icc_profile=swapped_profile())
    # Lookup tables of the colour management round to within a few grey levels.
    np.testing.assert_allclose(
        decode_image(encoded, "x").astype(int), PICTURE[..., ::-1].astype(int), atol=4
    )


@pytest.mark.parametrize("profile", ["sRGB", "LAB", "damaged"])
def test_srgb_and_unusable_profiles_change_nothing(profile):
    encoded_profile = b"damaged"
    if profile != "damaged":
        encoded_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()
    encoded = encode(Image.fromarray(PICTURE), icc_profile=encoded_profile)
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_truncated_file_is_refused(kind, tmp_path):
    path = tmp_path / "half.png"
    encoded = encode(Image.fromarray(np.tile(PICTURE, (8, 8, 1))), kind)
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(DataError, match=r"half\.png: cannot be decoded|half\.png: is no image"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_inside_a_jpeg_is_refused(mode):
    encoded = encode(Image.fromarray(np.tile(PICTURE, (8, 8, 1))).convert(mode), "JPEG")
    assert decode_image(encoded, "x").shape == (192, 288, 3)
    half = len(encoded) // 2
    with pytest.raises(DataError, match="x: cannot be decoded: Corrupt JPEG data"):
        decode_image(encoded[:half] + bytes(1000) + encoded[half + 1000 :], "x")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"no picture at all", "is no image")]
)
def test_what_is_no_image_is_refused(content, reason, tmp_path):
    path = tmp_path / "Aufnahme ä.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"Aufnahme ä\.jpg: .*{reason}"):
        read_image(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_image(tmp_path / "gone.png")


def test_write_image_png_is_lossless_and_jpg_is_444(tmp_path):
    write_image(tmp_path / "ö.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "ö.png"), PICTURE)
    size = write_image(tmp_path / "a.jpg", PICTURE)
    assert size == (tmp_path / "a.jpg").stat().st_size
    with Image.open(tmp_path / "a.jpg") as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
        assert not picture.getexif()
    with pytest.raises(UsageError, match=r"\.gif"):
        write_image(tmp_path / "a.gif", PICTURE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "ö.png"]


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_beside(tmp_path / "taken", b"a file cannot replace a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
