"""DICOM: pictures come out as they look, and nothing of the patient does."""

import io

import numpy as np
import pytest
from PIL import ImageCms

from data.errors import DataError
from data.finding import list_images
from data.images import decode_image

pydicom = pytest.importorskip("pydicom", minversion="3")

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SECRET = "Mustermann^Erika"


def dicom(pixels: np.ndarray, photometric: str = "RGB", **elements) -> bytes:
    """A file with the picture, and a header full of what is nobody's business."""
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
    assert np.abs(decoded.astype(int) - PICTURE).max() <= 2  # two roundings


@pytest.mark.parametrize(("photometric", "inverted"), [("MONOCHROME2", 0), ("MONOCHROME1", 1)])
def test_grey_of_12_bits_is_scaled_and_the_right_way_round(photometric, inverted):
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
def test_what_cannot_be_read_is_refused_without_a_word_on_the_patient(change, reason):
    with pytest.raises(DataError, match=rf"^eye\.dcm: .*{reason}") as refusal:
        decode_image(dicom(PICTURE, **change), "eye.dcm")
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_patient_is_never_parsed(monkeypatch):
    """The whole file is read into memory, but no data set is made of the names in it."""
    seen = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: seen.append(read(*a, **k)) or seen[-1])
    decode_image(dicom(PICTURE), "x")
    assert "PatientName" in read(io.BytesIO(dicom(PICTURE)))
    assert SECRET not in str(seen[0]) and "PatientName" not in seen[0]


def test_file_without_a_picture_is_refused():
    dataset = pydicom.dcmread(io.BytesIO(dicom(PICTURE)))
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    stream = io.BytesIO()
    dataset.save_as(stream)
    with pytest.raises(DataError, match="x: a DICOM file without a picture"):
        decode_image(stream.getvalue(), "x")


def test_folders_list_them(tmp_path):
    (tmp_path / "eye.DCM").write_bytes(dicom(PICTURE))
    assert [path.name for path in list_images(tmp_path)] == ["eye.DCM"]
