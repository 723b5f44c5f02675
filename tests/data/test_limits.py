"""Oversized files are refused before memory is allocated, without output of libraries."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.test_images import PICTURE, chunk, encode, with_chunk
from vae.data import limits
from vae.data.errors import DataError, UsageError
from vae.data.fundus_tiles.collect import collect
from vae.data.fundus_tiles.encoded import prepare
from vae.data.images import decode_image, read_image, require_encoded_size
from vae.data.inputs import Failure, open_inputs

# Reads files and prints the error of each file, and the growth of memory in MB.
_READ = """
import json, resource, sys
from vae.data.images import decode_image, read_image
from vae.data.errors import DataError
try:
    import pydicom.pixels
except ImportError:
    pass
from tests.data.test_images import PICTURE, encode
from PIL import Image
decode_image(encode(Image.fromarray(PICTURE), "TIFF"), "x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = {}
for path in sys.argv[1:]:
    try:
        read_image(path)
        reasons[path] = "read"
    except DataError as error:
        reasons[path] = str(error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([reasons, grown]))
"""


def read_apart(paths, **environment) -> tuple[dict[str, str], float, str]:
    """Reads files in a separate process.

    Returns:
      The error of each file or "read", the growth of memory in MB, and the standard error.
    """
    done = subprocess.run(
        [sys.executable, "-c", _READ, *map(str, paths)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    reasons, grown = json.loads(done.stdout)
    return {Path(path).name: reason for path, reason in reasons.items()}, grown, done.stderr


def jpeg_of(side: int, **options) -> bytes:
    """Returns a JPEG file whose header has another size than its data."""
    encoded = bytearray(encode(Image.fromarray(PICTURE), "JPEG", **options))
    at = encoded.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    encoded[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(encoded)


def tiff_of(values=PICTURE, tags: dict[int, int] | None = None, **options) -> bytes:
    """Returns a TIFF file with values of some tags that contradict its data."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric="rgb", **options)
    encoded = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        for code, value in (tags or {}).items():
            tag = file.pages[0].tags[code]
            form = {3: "<H", 4: "<I"}[tag.dtype]
            struct.pack_into(form, encoded, tag.valueoffset, value)
    return bytes(encoded)


def giants() -> dict[str, bytes]:
    side = 40_000
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    jp2 = bytearray(encode(Image.fromarray(PICTURE), "JPEG2000", no_jp2=True))
    jp2[8:16] = struct.pack(">II", side, side)
    jp2[24:32] = struct.pack(">II", side, side)
    bmp = bytearray(encode(Image.fromarray(PICTURE), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(encode(Image.fromarray(PICTURE), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    tga = bytearray(encode(Image.fromarray(PICTURE), "TGA"))
    tga[12:16] = struct.pack("<HH", side, side)
    stream = io.BytesIO()
    tifffile.imwrite(stream, PICTURE, photometric="rgb", compression="jpeg")
    in_tiff = bytearray(stream.getvalue())
    at = in_tiff.index(b"\xff\xc0") + 5
    in_tiff[at : at + 4] = struct.pack(">HH", side, side)
    return {
        "a.jpg": jpeg_of(65_500),
        "b.jpg": jpeg_of(65_500, progressive=True),
        "c.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b""),
        "d.j2k": bytes(jp2),
        "e.bmp": bytes(bmp),
        "f.gif": bytes(gif),
        "g.tga": bytes(tga),
        "h.ppm": b"P6 40000 40000 255\n" + bytes(1000),
        "i.ppm": b"P6 40000 40000 65535\n" + bytes(1000),
        "j.tif": tiff_of(tags={256: side, 257: side}),
        "k.tif": tiff_of(tags={322: 65536, 323: 65536}, tile=(16, 16)),
        "l.tif": bytes(in_tiff),
        "m.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
        + (16382).to_bytes(3, "little") * 2
        + b"VP8 \0\0\0\0",
    }


def test_oversized_files_are_refused_before_memory_is_allocated(tmp_path):
    for name, content in giants().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "n.png").touch()
    os.truncate(tmp_path / "n.png", 10 << 30)  # A sparse file, which takes no space on disk.
    reasons, grown, errors = read_apart(sorted(tmp_path.iterdir()))
    assert len(reasons) == 14 and errors == "" and grown < 100
    for name, reason in reasons.items():
        assert f"/{name}: " in reason and "\n" not in reason, reason
        if name != "m.webp":  # The decoder refuses it first.
            assert f"set {limits.VARIABLE}" in reason, reason


def test_oversized_images_in_dicom_are_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom", minversion="3")
    from pydicom.encaps import encapsulate
    from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

    from tests.data.test_dicom import dicom, stored_by

    def other(syntax, **elements) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(dicom(PICTURE)))
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset["PixelData"].is_undefined_length = syntax != DeflatedExplicitVRLittleEndian
        return stored_by(dataset, syntax)

    runs = struct.pack("<16I", 3, 64, 64 + 2_000_000, 64 + 4_000_000, *[0] * 12)
    runs += b"\x81\0" * 3_000_000  # 384 MB
    (tmp_path / "a.dcm").write_bytes(dicom(PICTURE, Rows=60_000, Columns=60_000))
    (tmp_path / "b.dcm").write_bytes(
        other(JPEGBaseline8Bit, PixelData=encapsulate([jpeg_of(65_500)]))
    )
    (tmp_path / "c.dcm").write_bytes(other(RLELossless, PixelData=encapsulate([runs])))
    (tmp_path / "d.dcm").write_bytes(
        other(DeflatedExplicitVRLittleEndian, PixelData=bytes(400_000_000))
    )
    reasons, grown, errors = read_apart(sorted(tmp_path.iterdir()), **{limits.VARIABLE: "4"})
    assert errors == "" and grown < 150, grown
    assert "60000 x 60000 pixels; expected at most 4 megapixels" in reasons["a.dcm"]
    assert "its compressed picture is 65500 x 65500" in reasons["b.dcm"]
    assert "c.dcm: " in reasons["c.dcm"]
    assert "more than 32,000,000 bytes" in reasons["d.dcm"]


@pytest.mark.parametrize("compression", ["zlib", "lzma", "zstd"])
def test_strips_are_inflated_only_to_their_size(compression, tmp_path):
    packed = {"zlib": 8, "lzma": 34925, "zstd": 50000}[compression]
    stream = io.BytesIO()
    values = np.zeros((6_000, 6_000, 3), np.uint8)
    tifffile.imwrite(stream, values, photometric="rgb", compression=packed, rowsperstrip=6_000)
    encoded = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        for code in (256, 257, 278):
            tag = file.pages[0].tags[code]
            struct.pack_into({3: "<H", 4: "<I"}[tag.dtype], encoded, tag.valueoffset, 100)
    (tmp_path / "a.tif").write_bytes(encoded)
    _, grown, errors = read_apart([tmp_path / "a.tif"])
    assert errors == "" and grown < 60, grown


def test_limit_is_one_setting(monkeypatch):
    encoded = encode(Image.fromarray(PICTURE))
    pixels = PICTURE.shape[0] * PICTURE.shape[1]
    monkeypatch.setenv(limits.VARIABLE, f"{pixels / 1e6:f}")
    np.testing.assert_array_equal(decode_image(encoded, "x"), PICTURE)
    monkeypatch.setenv(limits.VARIABLE, f"{(pixels - 1) / 1e6:f}")
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM"):
        with pytest.raises(DataError, match="x: its header says .* pixels; expected at most"):
            decode_image(encode(Image.fromarray(PICTURE), kind), "x")
    for encoded in (encode(Image.fromarray(PICTURE), kind) for kind in ("PNG", "JPEG")):
        with pytest.raises(DataError, match="the tile: its header says 36 x 24 pixels"):
            prepare(encoded)
        with pytest.raises(DataError, match="x: its header says 36 x 24 pixels"):
            require_encoded_size(encoded, "x")
    monkeypatch.setenv(limits.VARIABLE, "1000000")
    assert limits.max_pixels() == 10**12 and decode_image(encoded, "x").shape == PICTURE.shape


@pytest.mark.parametrize("value", ["many", "0", "-3", "nan", "inf"])
def test_limit_that_is_no_number_is_a_usage_error(value, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, value)
    with pytest.raises(UsageError, match=f"^{limits.VARIABLE}={value}: expected a number"):
        decode_image(encode(Image.fromarray(PICTURE)), "x")


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
def test_only_regular_files_are_opened(kind, tmp_path):
    path = tmp_path / "x.png"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DataError, match=rf"x\.png is {kind}, no regular file; expected an image"):
        read_image(path)
    if kind != "a folder":
        (failure,) = open_inputs([tmp_path]).read()
        assert isinstance(failure, Failure) and f"is {kind}" in failure.reason


def test_pipe_among_tiles_is_refused_on_reading(tmp_path):
    from vae.data import storage

    os.mkfifo(tmp_path / "x.png")
    assert len(collect(tmp_path, patients_unknown=True, val=0, test=0)) == 1
    with pytest.raises(DataError, match="is a named pipe"):
        storage.read_bytes(tmp_path / "x.png")


def test_links_to_regular_files_are_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(PICTURE)))
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), PICTURE)


def test_decoders_are_silent(tmp_path):
    whole = {
        kind: encode(Image.fromarray(np.tile(PICTURE, (9, 9, 1))), kind)
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "TGA")
    }
    large = np.zeros((9_700, 9_700), np.uint8)  # Pillow would warn of it.
    whole["large"] = encode(Image.fromarray(large), compress_level=1)
    profile = encode(Image.fromarray(PICTURE), icc_profile=b"damaged")
    whole["profile"] = profile
    # libpng would warn of both chunks.
    whole["odd"] = with_chunk(encode(Image.fromarray(PICTURE)), b"sBIT", b"\x09\x09\x09")
    whole["odd16"] = with_chunk(
        imagecodecs.png_encode(PICTURE.astype(np.uint16)), b"tIME", b"\0\0\x20"
    )
    files = {}
    for kind, encoded in whole.items():
        files[f"{kind}_whole.tga"] = encoded
        files[f"{kind}_half.tga"] = encoded[: len(encoded) // 2]
        spoiled = bytearray(encoded)
        spoiled[len(encoded) // 3 : len(encoded) // 2] = bytes(
            len(encoded) // 2 - len(encoded) // 3
        )
        files[f"{kind}_spoiled.tga"] = bytes(spoiled)
        files[f"{kind}_head.tga"] = encoded[:20] + b"\xff\xfe\x00" * 30
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    reasons, _, errors = read_apart(sorted(tmp_path.iterdir()))
    assert errors == ""
    assert all(reasons[f"{kind}_whole.tga"] == "read" for kind in whole)
    assert all(reason == "read" or "\n" not in reason for reason in reasons.values())


def test_dicom_is_silent(tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    from tests.data.test_dicom import dicom

    encoded = dicom(PICTURE, NumberOfFrames=0)
    (tmp_path / "a").write_bytes(encoded + b"\0")
    (tmp_path / "b").write_bytes(encoded[:-100])
    (tmp_path / "c").write_bytes(encoded[:200])
    (tmp_path / "d").write_bytes(dicom(PICTURE, PatientBirthDate="no date"))
    reasons, _, errors = read_apart(sorted(tmp_path.iterdir()))
    assert errors == "" and reasons["d"] == "read"
    assert "cannot be decoded" in reasons["b"]
