"""DICOM files: decoded pixels are correct, and no patient data is read."""

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.test_images import encode
from vae.data.errors import DataError
from vae.data.finding import find_images
from vae.data.images import decode_image

pydicom = pytest.importorskip("pydicom", minversion="3")

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SECRET = "Mustermann^Erika"


def dicom(pixels: np.ndarray, photometric: str = "RGB", **elements) -> bytes:
    """A DICOM file with an image and identifying attributes."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, OphthalmicPhotography8BitImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientID = SECRET, SECRET
    dataset.SOPClassUID = OphthalmicPhotography8BitImageStorage
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.PixelRepresentation = dataset.BitsAllocated, 0
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_pixels_belong_to_the_caller():
    for encoded in (dicom(PICTURE), dicom(PICTURE[..., 0].copy(), "MONOCHROME2")):
        assert decode_image(encoded, "x").flags.writeable


def test_rgb_keeps_its_values():
    np.testing.assert_array_equal(decode_image(dicom(PICTURE), "x"), PICTURE)
    planar = dicom(np.ascontiguousarray(PICTURE.transpose(2, 0, 1)).reshape(20, 30, 3))
    planes = pydicom.dcmread(io.BytesIO(planar))
    planes.PlanarConfiguration = 1
    stream = io.BytesIO()
    planes.save_as(stream)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), "x"), PICTURE)


def test_ybr_becomes_rgb():
    from pydicom.pixels import convert_color_space

    ybr = convert_color_space(PICTURE, "RGB", "YBR_FULL")
    decoded = decode_image(dicom(ybr, "YBR_FULL"), "x")
    assert np.abs(decoded.astype(int) - PICTURE).max() <= 2  # values are rounded twice


@pytest.mark.parametrize(("photometric", "inverted"), [("MONOCHROME2", 0), ("MONOCHROME1", 1)])
def test_grey_of_12_bits_is_scaled_and_inverted_if_needed(photometric, inverted):
    wide = np.random.default_rng(1).integers(0, 4096, (20, 30), dtype=np.uint16)
    encoded = dicom(wide, photometric, BitsStored=12, HighBit=11)
    expected = np.rint((4095 - wide if inverted else wide) * (255 / 4095)).astype(np.uint8)
    decoded = decode_image(encoded, "x")
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))


def test_colour_profile_is_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    for name, other in ((b"rXYZ", b"tXYZ"), (b"bXYZ", b"rXYZ"), (b"tXYZ", b"bXYZ")):
        profile = profile.replace(name, other)  # red and blue change places
    decoded = decode_image(dicom(PICTURE, ICCProfile=profile), "x")
    np.testing.assert_allclose(decoded.astype(int), PICTURE[..., ::-1].astype(int), atol=4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 2, "PixelData": PICTURE.tobytes() * 2}, "holds 2 frames"),
        ({"PixelRepresentation": 1}, "8 bits a value, signed; expected up to 16, unsigned"),
        ({"PixelData": PICTURE.tobytes()[:900]}, "cannot be decoded"),
        ({"PhotometricInterpretation": "HSV"}, "colours 'HSV', expected one of RGB"),
    ],
)
def test_error_messages_contain_no_patient_data(change, reason):
    with pytest.raises(DataError, match=rf"^eye\.dcm: .*{reason}") as refusal:
        decode_image(dicom(PICTURE, **change), "eye.dcm")
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_patient_is_never_parsed(monkeypatch):
    """The whole file is read into memory, but the patient's elements are never parsed."""
    seen = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: seen.append(read(*a, **k)) or seen[-1])
    decode_image(dicom(PICTURE), "x")
    assert "PatientName" in read(io.BytesIO(dicom(PICTURE)))
    assert SECRET not in str(seen[0]) and "PatientName" not in seen[0]


def test_file_without_an_image_is_refused():
    dataset = pydicom.dcmread(io.BytesIO(dicom(PICTURE)))
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    stream = io.BytesIO()
    dataset.save_as(stream)
    with pytest.raises(DataError, match="x: a DICOM file without a picture"):
        decode_image(stream.getvalue(), "x")


def test_folders_list_dicom_files(tmp_path):
    (tmp_path / "eye.DCM").write_bytes(dicom(PICTURE))
    assert [path.name for path in find_images(tmp_path).paths] == ["eye.DCM"]


def stored_by(dataset, syntax: str | None = None) -> bytes:
    """Returns the bytes of a data set, with another transfer syntax if given."""
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def table(values: np.ndarray, first: int = 0, bits: int = 16, words: bool = False):
    """Returns a sequence of one lookup table."""
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values) % 65536, first, bits]
    item.add_new("LUTData", "OW" if words else "US", values.astype("<u2").tobytes())
    if not words:
        item.add_new("LUTData", "US", values.tolist())
    return [item]


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
OF_12_BITS = {"BitsStored": 12, "HighBit": 11}


def grey(pixels: np.ndarray = RAMP, photometric: str = "MONOCHROME2", **elements) -> np.ndarray:
    decoded = decode_image(dicom(pixels, photometric, **(OF_12_BITS | elements)), "x")
    assert (decoded == decoded[..., :1]).all()
    return decoded[..., 0]


def rounded(share: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def test_window_is_applied():
    # As in the standard: LINEAR uses centre - 0.5 and width - 1.
    expected = rounded((RAMP - 1999.5) / 999 + 0.5)
    np.testing.assert_array_equal(grey(WindowCenter=2000, WindowWidth=1000), expected)
    both = grey(WindowCenter=[2000, 50], WindowWidth=[1000, 7])
    np.testing.assert_array_equal(both, expected)
    exact = grey(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(exact, rounded((RAMP - 2000.0) / 1000 + 0.5))
    curved = grey(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(curved, rounded(1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000))))


def test_window_applies_to_rescaled_values():
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": -100}
    np.testing.assert_array_equal(grey(**rescale), rounded(RAMP / 4095))
    windowed = grey(WindowCenter=900, WindowWidth=500, **rescale)
    np.testing.assert_array_equal(windowed, rounded((RAMP * 0.5 - 100 - 899.5) / 499 + 0.5))
    np.testing.assert_array_equal(
        grey(RescaleSlope=-1, RescaleIntercept=4095), rounded(1 - RAMP / 4095)
    )
    windowed = grey(RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2000, WindowWidth=1000)
    np.testing.assert_array_equal(windowed, rounded((4095.0 - RAMP - 1999.5) / 999 + 0.5))


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tables_are_applied(name, words, bits):
    entries = np.random.default_rng(0).integers(0, 1 << bits, 3000).astype(np.uint16)
    decoded = grey(**{name: table(entries, first=500, bits=bits, words=words)})
    index = np.clip(RAMP.astype(int) - 500, 0, 2999)
    np.testing.assert_array_equal(decoded, rounded(entries[index] / ((1 << bits) - 1)))


def test_table_takes_precedence_over_the_window():
    entries = np.full(4096, 4095, np.uint16)
    decoded = grey(VOILUTSequence=table(entries, bits=12), WindowCenter=1, WindowWidth=2)
    assert (decoded == 255).all()


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_presentation_shape_inverts_once(photometric, shape, inverted):
    decoded = grey(photometric=photometric, PresentationLUTShape=shape)
    np.testing.assert_array_equal(decoded, rounded(abs(inverted - RAMP / 4095)))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("width", [1, 2])
def test_palettes_are_applied(depth, width):
    if depth == 16 and width == 1:
        pytest.skip("16 bits need two bytes")
    entries = np.random.default_rng(0).integers(0, 1 << depth, (3, 200)).astype(f"<u{width}")
    elements = {}
    for colour, values in zip(("Red", "Green", "Blue"), entries, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [200, 20, depth]
        elements[f"{colour}PaletteColorLookupTableData"] = values.tobytes()
    decoded = decode_image(dicom(PICTURE[..., 0], "PALETTE COLOR", **elements), "x")
    index = np.clip(PICTURE[..., 0].astype(int) - 20, 0, 199)
    expected = rounded(entries.T[index] / ((1 << depth) - 1))
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("length", ["explicit", "implicit"])
def test_file_without_preamble_is_read(length):
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    encoded = dicom(PICTURE)
    np.testing.assert_array_equal(decode_image(encoded[132:], "x"), PICTURE)
    bare = pydicom.Dataset()
    bare.update(pydicom.dcmread(io.BytesIO(encoded)))
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, length == "implicit"
    write_dataset(stream, bare)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), "x"), PICTURE)


@pytest.mark.parametrize("pixels", [PICTURE, RAMP], ids=["colour", "grey"])
def test_rle_and_deflate_keep_the_values(pixels):
    from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

    photometric = "RGB" if pixels is PICTURE else "MONOCHROME2"
    elements = {} if pixels is PICTURE else OF_12_BITS
    plain = dicom(pixels, photometric, **elements)
    expected = decode_image(plain, "x")
    packed = pydicom.dcmread(io.BytesIO(plain))
    packed.compress(RLELossless)
    np.testing.assert_array_equal(decode_image(stored_by(packed), "x"), expected)
    deflated = stored_by(pydicom.dcmread(io.BytesIO(plain)), DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(decode_image(deflated, "x"), expected)
    assert SECRET not in repr(decode_image(deflated, "x"))


def test_embedded_jpeg_is_read_and_refused_if_damaged():
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    frame = encode(Image.fromarray(smooth), "JPEG", quality=95)
    dataset = pydicom.dcmread(io.BytesIO(dicom(smooth, "MONOCHROME2")))
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    decoded = decode_image(stored_by(dataset, JPEGBaseline8Bit), "x")
    assert np.abs(decoded[..., 0].astype(int) - smooth).max() < 8
    dataset.PixelData = encapsulate([frame[: len(frame) // 2] + b"\xff\xd9"])
    with pytest.raises(DataError, match="x: cannot be decoded: Corrupt JPEG data"):
        decode_image(stored_by(dataset), "x")
    dataset.PixelData, dataset.Rows = encapsulate([frame]), 63
    with pytest.raises(DataError, match="x: its compressed picture is 64 x 64 .*expected 64 x 63"):
        decode_image(stored_by(dataset), "x")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PresentationLUTShape": "LIN OD"}, r"\(2050,0020\) Presentation LUT Shape is 'LIN OD'"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, r"\(0028,1053\) Rescale Slope is 0"),
        ({"HighBit": 15}, r"\(0028,0102\) High Bit is 15; expected 11"),
        ({"SamplesPerPixel": 2}, r"\(0028,0002\) Samples per Pixel is 2; expected 1"),
        ({"WindowCenter": 5, "WindowWidth": 0}, r"\(0028,1051\) Window Width"),
    ],
)
def test_unsupported_grey_is_refused_by_name(elements, reason):
    with pytest.raises(DataError, match=f"^x: .*{reason}"):
        grey(**elements)


def test_table_of_undefined_length_is_applied():
    entries = np.random.default_rng(0).integers(0, 4096, 4096).astype(np.uint16)
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP, "MONOCHROME2", **OF_12_BITS)))
    dataset.VOILUTSequence = table(entries, bits=12)
    dataset["VOILUTSequence"].is_undefined_length = True
    decoded = decode_image(stored_by(dataset), "x")
    np.testing.assert_array_equal(decoded[..., 0], rounded(entries[RAMP] / 4095))


@pytest.mark.parametrize("bits", [8, 12])
def test_embedded_jpeg_2000_keeps_the_values(bits):
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    values = RAMP if bits == 12 else PICTURE[..., 0]
    dataset = pydicom.dcmread(
        io.BytesIO(dicom(values, "MONOCHROME2", BitsStored=bits, HighBit=bits - 1))
    )
    frame = imagecodecs.jpeg2k_encode(
        values, level=0, reversible=True, bitspersample=bits, codecformat="j2k"
    )
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    decoded = decode_image(stored_by(dataset, JPEG2000Lossless), "x")
    np.testing.assert_array_equal(decoded[..., 0], rounded(values / ((1 << bits) - 1)))
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    with pytest.raises(DataError, match="x: cannot be decoded"):
        decode_image(stored_by(dataset), "x")
