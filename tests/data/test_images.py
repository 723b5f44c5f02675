import io
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from vae.data.errors import DataError, UsageError
from vae.data.files import write_beside
from vae.data.fundus_tiles.encoded import prepare
from vae.data.images import decode_image, read_image, write_image

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
    """Returns an RGB profile with exchanged red and blue primaries."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    profile = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    return profile


def test_colour_profile_is_converted_to_srgb():
    encoded = encode(Image.fromarray(PICTURE), icc_profile=swapped_profile())
    # Lookup tables of the colour management round to a few grey levels.
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
def test_files_that_are_no_images_are_refused(content, reason, tmp_path):
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


def profile_of_gamma_1() -> bytes:
    """Returns a profile that is named sRGB and has a linear curve instead of sRGB's."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert b"para" in profile and b"s\0R\0G\0B" in profile
    return profile.replace(b"para" + bytes(4) + b"\0\3", b"curv" + bytes(4) + b"\0\0")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_profiles_are_judged_by_their_curves_and_not_by_their_name(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(Image.fromarray(PICTURE), kind, icc_profile=profile_of_gamma_1(), **options)
    light = PICTURE / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    decoded = decode_image(encoded, "x").astype(int)
    assert np.abs(decoded - expected * 255).max() <= 2


def test_srgb_profile_with_another_name_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    encoded = encode(Image.fromarray(PICTURE), icc_profile=profile)
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_of_zero_everywhere_is_refused(kind):
    picture = Image.fromarray(PICTURE)
    picture.putalpha(0)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    with pytest.raises(DataError, match="^eye.png: its alpha channel is 0 everywhere"):
        decode_image(encode(picture, kind, **options), "eye.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_alpha_is_composited_on_black(channels):
    wide = np.random.default_rng(1).integers(0, 65536, (20, 20, channels + 1), dtype=np.uint16)
    decoded = decode_image(imagecodecs.png_encode(wide), "x")
    over = np.floor(wide[..., :-1].astype(float) * wide[..., -1:] / 65535 + 0.5)
    expected = np.floor(over * (255 / 65535) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected, 3 // channels, 2))
    wide[..., -1] = 0
    with pytest.raises(DataError, match="x: its alpha channel is 0 everywhere"):
        decode_image(imagecodecs.png_encode(wide), "x")


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def with_chunk(encoded: bytes, kind: bytes, content: bytes) -> bytes:
    """Returns a PNG file with an additional chunk after its header."""
    return encoded[:33] + chunk(kind, content) + encoded[33:]


def test_tiles_of_another_gamma_are_refused_and_stray_bytes_are_not():
    linear = with_chunk(encode(Image.fromarray(PICTURE)), b"gAMA", struct.pack(">I", 100000))
    with pytest.raises(DataError, match="the tile: PNG chunk gAMA is 1"):
        prepare(linear)
    encoded = encode(Image.fromarray(np.tile(PICTURE, (8, 8, 1))), "JPEG")
    at = encoded.index(b"\xff\xdb")
    kept = prepare(encoded[:at] + b"stray\0\1" + encoded[at:-2] + bytes(9) + encoded[-2:])
    np.testing.assert_array_equal(decode_image(kept.data, "x"), decode_image(encoded, "x"))


def test_png_without_end_is_accepted_and_without_its_last_data_refused():
    encoded = encode(Image.fromarray(PICTURE))
    np.testing.assert_array_equal(decode_image(encoded[:-12], "x"), PICTURE)
    with pytest.raises(DataError, match="x: cannot be decoded"):
        decode_image(encoded[:-13], "x")


def test_16_bit_colour_may_be_transparent():
    wide = np.full((4, 5), 30000, np.uint16)
    wide[0, 1] = 30001  # The same image in 8 bits.
    encoded = with_chunk(imagecodecs.png_encode(wide), b"tRNS", struct.pack(">H", 30001))
    decoded = decode_image(encoded, "x")
    assert (decoded[0, 1] == 0).all() and (decoded[1:] == 117).all()


def test_png_of_another_gamma_is_refused_by_name():
    encoded = encode(Image.fromarray(PICTURE))
    as_srgb = with_chunk(encoded, b"gAMA", struct.pack(">I", 45455))
    np.testing.assert_array_equal(decode_image(as_srgb, "x"), PICTURE)
    linear = with_chunk(encoded, b"gAMA", struct.pack(">I", 100000))
    with pytest.raises(DataError, match=r"x: PNG chunk gAMA is 1; expected 0\.45455"):
        decode_image(linear, "x")
    np.testing.assert_array_equal(decode_image(with_chunk(linear, b"sRGB", b"\0"), "x"), PICTURE)
    with pytest.raises(DataError, match="x: PNG chunk cICP is not read"):
        decode_image(with_chunk(encoded, b"cICP", bytes([9, 16, 0, 1])), "x")


def bmp_of_32_bits(alpha: int, names_alpha: bool) -> bytes:
    height, width = PICTURE.shape[:2]
    values = np.dstack([PICTURE[..., ::-1], np.full((height, width), alpha, np.uint8)])[::-1]
    size = 108 if names_alpha else 40
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    info = struct.pack("<IiiHHIIiiII", size, width, height, 1, 32, 3 * names_alpha, *[0] * 5)
    info += masks * names_alpha
    start = 14 + len(info)
    return (
        b"BM" + struct.pack("<IHHI", start + values.nbytes, 0, 0, start) + info + values.tobytes()
    )


@pytest.mark.parametrize("names_alpha", [False, True])
def test_unused_fourth_byte_of_bmp_is_not_alpha(names_alpha):
    decoded = decode_image(bmp_of_32_bits(0, names_alpha), "x")
    np.testing.assert_array_equal(decoded, PICTURE)


def test_alpha_of_bmp_is_composited():
    decoded = decode_image(bmp_of_32_bits(127, True), "x")
    np.testing.assert_array_equal(decoded, np.rint(PICTURE * (127 / 255)))


def test_tga_is_recognised_by_its_suffix_only():
    encoded = encode(Image.fromarray(PICTURE), "TGA")
    np.testing.assert_array_equal(decode_image(encoded, "eye.TGA"), PICTURE)
    with pytest.raises(DataError, match="eye.png: is no image"):
        decode_image(encoded, "eye.png")


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "ICO"])
def test_other_formats_are_refused_whatever_their_suffix(kind):
    with pytest.raises(DataError, match="eye.png: is no image"):
        decode_image(encode(Image.fromarray(PICTURE), kind), "eye.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(PICTURE[::-1])]
    encoded = encode(Image.fromarray(PICTURE), kind, save_all=True, append_images=frames)
    with pytest.raises(DataError, match="x: holds 2 frames; expected one picture a file"):
        decode_image(encoded, "x")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "JPEG2000", "TGA", "DIB"])
def test_further_formats_keep_their_values(kind):
    picture = Image.fromarray(PICTURE)
    if kind == "GIF":
        picture = picture.quantize(64).convert("P")
    encoded = encode(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(encoded, "x.tga"), picture.convert("RGB"))


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_wide_jpeg_2000_is_scaled(bits, channels):
    wide = np.random.default_rng(1).integers(0, 1 << bits, (40, 50, channels)).astype(np.uint16)
    wide = wide if channels == 3 else wide[..., 0]
    encoded = imagecodecs.jpeg2k_encode(wide, level=0, reversible=True, bitspersample=bits)
    expected = np.floor(wide * (255 / ((1 << bits) - 1)) + 0.5).astype(np.uint8)
    expected = expected if channels == 3 else np.repeat(expected[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encoded, "x"), expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("place", ["head", "behind the data", "end"])
def test_stray_bytes_between_jpeg_segments_change_nothing(place, mode, progressive):
    picture = Image.fromarray(np.tile(PICTURE, (8, 8, 1))).convert(mode)
    encoded = encode(picture, "JPEG", progressive=progressive)
    whole = decode_image(encoded, "x")
    at = {
        "head": encoded.index(b"\xff\xdb"),
        "behind the data": len(encoded) - 2,
        "end": len(encoded),
    }[place]
    stray = bytes(40) if place == "behind the data" else b"stray\0\1"
    np.testing.assert_array_equal(decode_image(encoded[:at] + stray + encoded[at:], "x"), whole)
    with pytest.raises(DataError, match="x: cannot be decoded"):
        decode_image(encoded[: len(encoded) // 2] + stray + b"\xff\xd9", "x")


def test_bytes_after_a_jpeg_other_than_padding_count_as_damage():
    encoded = encode(Image.fromarray(np.tile(PICTURE, (8, 8, 1))), "JPEG")
    with pytest.raises(DataError, match="x: cannot be decoded: .*extraneous bytes before marker"):
        decode_image(encoded[:-2] + bytes(range(1, 100)) + encoded[-2:], "x")


def test_first_image_of_mpo_is_the_photograph():
    later = [Image.fromarray(PICTURE[::-1])]
    encoded = encode(Image.fromarray(PICTURE), "MPO", save_all=True, append_images=later)
    alone = decode_image(encode(Image.fromarray(PICTURE), "JPEG"), "x")
    np.testing.assert_array_equal(decode_image(encoded, "x"), alone)


@pytest.mark.parametrize("factors", [0x111111, 0x211111, 0x221111, 0x121111, 0x411111])
def test_every_chroma_subsampling_is_read(factors):
    smooth = cv2.GaussianBlur(np.tile(PICTURE, (4, 4, 1)), (0, 0), 9)
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors, cv2.IMWRITE_JPEG_QUALITY, 95]
    encoded = cv2.imencode(".jpg", smooth[..., ::-1], options)[1].tobytes()
    decoded = decode_image(encoded, "x").astype(int)
    assert np.abs(decoded - smooth).max() < 12
    with Image.open(io.BytesIO(encoded)) as picture:
        np.testing.assert_array_equal(decoded, np.array(picture))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_belong_to_the_caller(kind, mode):
    decoded = decode_image(encode(Image.fromarray(PICTURE).convert(mode), kind), "x")
    assert decoded.dtype == np.uint8 and decoded.shape == PICTURE.shape
    assert decoded.flags.writeable and decoded.flags.c_contiguous
