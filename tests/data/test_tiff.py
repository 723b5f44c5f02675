"""TIFF files: pixels are decoded as the tags describe, or the tag is refused by name."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from vae.data.errors import DataError
from vae.data.images import decode_image

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 56, 3), dtype=np.uint8)
WIDE = PICTURE.astype(np.uint16) * 257
GREY = np.repeat(PICTURE[..., 1:2], 3, axis=2)
SMOOTH = np.linspace(0, 255, 48 * 56 * 3).reshape(48, 56, 3).astype(np.uint8)


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def planes(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, 2, 0).copy()


def with_fourth(values: np.ndarray, fourth: int) -> np.ndarray:
    return np.dstack([values, np.full(values.shape[:2], fourth, values.dtype)])


def by_pillow(mode: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(stream, "TIFF", **options)
    return stream.getvalue()


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize("layout", ["planes", "tiles", "strips"])
@pytest.mark.parametrize("values", [PICTURE, WIDE], ids=["8 bits", "16 bits"])
def test_planes_tiles_and_strips_give_the_same_image(values, layout, compression):
    options = {
        "planes": {"planarconfig": "separate"},
        "tiles": {"tile": (32, 16)},
        "strips": {"rowsperstrip": 5},
    }[layout]
    stored = planes(values) if layout == "planes" else values
    encoded = tiff(stored, photometric="rgb", compression=compression, **options)
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders_and_predictor(order):
    encoded = tiff(WIDE, photometric="rgb", byteorder=order, compression="zlib", predictor=True)
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)
    encoded = tiff(WIDE, photometric="rgb", byteorder=order, bigtiff=True)
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)


@pytest.mark.parametrize("values", [PICTURE, WIDE], ids=["8 bits", "16 bits"])
def test_zero_may_be_white(values):
    top = np.iinfo(values.dtype).max
    encoded = tiff(top - values[..., 1], photometric="miniswhite")
    np.testing.assert_array_equal(decode_image(encoded, "x"), GREY)


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_few_bits_fill_the_range(bits):
    values = WIDE[..., 1] >> (16 - bits)
    stored = values.astype(bool) if bits == 1 else values
    stored = stored.astype(np.uint8) if 1 < bits < 8 else stored
    encoded = tiff(stored, photometric="minisblack", bitspersample=bits)
    expected = np.floor(values * (255 / (2**bits - 1)) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encoded, "x")[..., 2], expected)


@pytest.mark.parametrize(
    ("kind", "stored", "expected"),
    [
        ("unspecified", with_fourth(WIDE, 0), PICTURE),
        ("unspecified", with_fourth(PICTURE, 99), PICTURE),
        ("unassalpha", with_fourth(PICTURE, 255), PICTURE),
        ("unassalpha", with_fourth(PICTURE, 127), np.rint(PICTURE * (127 / 255))),
        ("assocalpha", with_fourth(PICTURE // 2, 127), PICTURE // 2),
    ],
)
def test_fourth_sample_is_used_as_its_tag_says(kind, stored, expected):
    encoded = tiff(stored, photometric="rgb", extrasamples=[kind])
    np.testing.assert_array_equal(decode_image(encoded, "x"), expected)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_of_zero_everywhere_is_refused(kind):
    encoded = tiff(with_fourth(PICTURE, 0), photometric="rgb", extrasamples=[kind])
    with pytest.raises(DataError, match="^eye.tif: its alpha channel is 0 everywhere"):
        decode_image(encoded, "eye.tif")


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (
            tiff(planes(PICTURE), imagej=True, metadata={"axes": "CYX", "mode": "composite"}),
            "holds 3 full-size TIFF pages; expected one picture",
        ),
        (tiff(np.stack([PICTURE] * 2), photometric="rgb"), "holds 2 full-size TIFF pages"),
        (
            tiff(np.stack([PICTURE] * 2), photometric="rgb", metadata=None),
            "holds 2 full-size TIFF pages",
        ),
        (
            tiff(planes(PICTURE), photometric="minisblack", planarconfig="separate"),
            "TIFF tag SamplesPerPixel is 3; expected 1 for MINISBLACK",
        ),
        (tiff(PICTURE, photometric="rgb", subfiletype=1), "holds 0 full-size TIFF pages"),
        (tiff(GREY[..., 0] > 9, photometric="mask", subfiletype=4), "NewSubfileType 4, a mask"),
        (tiff(PICTURE[..., 1].astype(np.int16)), r"SampleFormat is 2 \(signed integers\)"),
        (tiff(PICTURE[..., 1].astype(np.float16)), r"SampleFormat is 3 \(floating point\)"),
        (tiff(PICTURE[..., 1].astype(np.uint32)), "BitsPerSample is 32; expected 1 to 16"),
        (tiff(PICTURE[..., 1], photometric="cfa"), r"PhotometricInterpretation is 32803 \(CFA\)"),
        (tiff(PICTURE, photometric="rgb", compression="webp"), r"Compression is 50001 \(WEBP\)"),
        (
            tiff(PICTURE, photometric="ycbcr", subsampling=(2, 2), compression="jpeg").replace(
                b"\x03\x01\x03\x00\x01\x00\x00\x00\x07", b"\x03\x01\x03\x00\x01\x00\x00\x00\x08"
            ),
            r"YCbCrSubSampling is \(2, 2\); expected \(1, 1\)",
        ),
    ],
)
def test_unsupported_tags_are_refused_by_name(encoded, reason):
    with pytest.raises(DataError, match=f"^eye.tif: .*{reason}") as refusal:
        decode_image(encoded, "eye.tif")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("small_first", [True, False])
def test_reduced_copies_are_ignored(small_first):
    stream = io.BytesIO()
    pages = [(PICTURE[::4, ::4], 1), (PICTURE, 0)]
    with tifffile.TiffWriter(stream) as writer:
        for values, kind in pages if small_first else pages[::-1]:
            writer.write(values, photometric="rgb", subfiletype=kind, metadata=None)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), "x"), PICTURE)


def test_subimages_of_a_page_are_ignored():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(PICTURE, photometric="rgb", subifds=1, metadata=None)
        writer.write(PICTURE[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), "x"), PICTURE)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
        (9, lambda a: a),
    ],
)
def test_orientation_is_applied(orientation, undo):
    encoded = tiff(PICTURE, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(decode_image(encoded, "x"), undo(PICTURE))


def test_palette_is_applied():
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16)
    for factor in (1, 256, 257):
        encoded = tiff(PICTURE[..., 0], photometric="palette", colormap=colours * factor)
        np.testing.assert_array_equal(decode_image(encoded, "x"), colours.T[PICTURE[..., 0]])
    encoded = by_pillow("P")
    with Image.open(io.BytesIO(encoded)) as picture:
        np.testing.assert_array_equal(decode_image(encoded, "x"), picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LA", "RGBA", "1"])
def test_other_colours_are_converted(mode):
    expected = np.array(Image.fromarray(PICTURE).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(decode_image(by_pillow(mode), "x"), expected)


def test_cielab_is_converted():
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    picture = ImageCms.profileToProfile(Image.fromarray(SMOOTH), *profiles, outputMode="LAB")
    stream = io.BytesIO()
    picture.save(stream, "TIFF")
    decoded = decode_image(stream.getvalue(), "x").astype(int)
    assert np.abs(decoded - np.array(picture.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("writer", ["tifffile", "pillow"])
def test_jpeg_strips_are_read_and_refused_if_damaged(writer):
    if writer == "tifffile":
        encoded = tiff(SMOOTH, photometric="rgb", compression="jpeg")
    else:
        stream = io.BytesIO()
        Image.fromarray(SMOOTH).save(stream, "TIFF", compression="jpeg")
        encoded = stream.getvalue()
    assert np.abs(decode_image(encoded, "x").astype(int) - SMOOTH).mean() < 3
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        start, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    at = start + count - 60
    damaged = encoded[:at] + bytes(40) + encoded[at + 40 :]
    with pytest.raises(DataError, match="x: cannot be decoded: Corrupt JPEG data"):
        decode_image(damaged, "x")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "jpeg"])
def test_missing_strips_are_refused(compression):
    encoded = tiff(PICTURE, photometric="rgb", compression=compression, rowsperstrip=8)
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        end = file.pages[0].dataoffsets[-1]
        counts = file.pages[0].tags["StripByteCounts"]
        at, width = counts.valueoffset, {3: 2, 4: 4}[counts.dtype]
    with pytest.raises(DataError, match=r"x: cannot be decoded: .*(missing|failed to read)"):
        decode_image(encoded[: end + 2], "x")
    if compression:
        none = encoded[:at] + bytes(width) + encoded[at + width :]
        with pytest.raises(DataError, match=r"x: cannot be decoded: .*missing"):
            decode_image(none, "x")


def test_colour_profile_is_applied():
    from tests.data.test_images import swapped_profile

    encoded = tiff(PICTURE, photometric="rgb", iccprofile=swapped_profile())
    np.testing.assert_allclose(
        decode_image(encoded, "x").astype(int), PICTURE[..., ::-1].astype(int), atol=4
    )
