"""Folders: all readable kinds of files are found, and other files are counted."""

import collections
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import encode
from vae.data.errors import DataError
from vae.data.finding import Found, find_images
from vae.data.fundus_tiles.collect import collect
from vae.data.images import IMAGE_SUFFIXES, write_image
from vae.data.inputs import Failure, Item, open_inputs
from vae.data.names import suffix_of, without_suffix

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def test_list_images_sorts_and_skips_hidden_files(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a/ü 1.tif", "a/notes.txt", ".git/x.png", "a/._2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "circle").symlink_to(tmp_path)  # following it must end
    listed = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path).paths]
    assert listed == ["a/ü 1.tif", "b/10.png", "b/2.JPG"]


def test_list_images_refuses_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="no images"):
        find_images(tmp_path)
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"no images; expected files ending in .*; left out: 1 \."):
        find_images(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        find_images(tmp_path / "gone")


def test_every_readable_kind_is_found_and_the_rest_is_counted(tmp_path):
    for suffix in IMAGE_SUFFIXES:
        (tmp_path / f"eye{suffix.upper()}").touch()
    for name in ("a.csv", "b.CSV", "c.txt", "notes", ".hidden.csv", "manifest.csv", "rejected.csv"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert {path.suffix.lower() for path in found.paths} == set(IMAGE_SUFFIXES)
    assert found.left_out == {".csv": 2, ".txt": 1, "": 1}
    assert found.left_out_line() == "left out: 2 .csv, 1 without a suffix, 1 .txt"
    assert {".webp", ".jp2", ".j2k", ".gif", ".pgm", ".jfif", ".jpe", ".tga"} <= set(IMAGE_SUFFIXES)
    assert Found([], collections.Counter()).left_out_line() == ""


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.10008.77"])
@pytest.mark.parametrize("preamble", [True, False])
def test_dicom_files_without_a_suffix_are_found(name, preamble, tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    from tests.data.test_dicom import dicom

    encoded = dicom(PICTURE)
    (tmp_path / name).write_bytes(encoded if preamble else encoded[132:])
    (tmp_path / "README").write_text("About these files.\n" * 20)
    found = find_images(tmp_path)
    assert [path.name for path in found.paths] == [name] and found.left_out == {"": 1}
    (item,) = open_inputs([tmp_path]).read()
    assert item.item_id == name
    np.testing.assert_array_equal(item.image, PICTURE)


def test_suffix_of_and_without_suffix():
    assert suffix_of("a/Eye.PNG") == ".png" and without_suffix("a.b/Eye.PNG") == "a.b/Eye"
    assert suffix_of("1.2.840.77") == "" and without_suffix("a/1.2.840.77") == "a/1.2.840.77"
    assert suffix_of("eye") == "" and without_suffix(".b/eye") == ".b/eye"


def test_inputs_report_left_out_files(tmp_path, capsys):
    write_image(tmp_path / "eye.png", PICTURE)
    open_inputs([tmp_path])
    assert capsys.readouterr().err == ""
    (tmp_path / "grades.csv").touch()
    open_inputs([tmp_path])
    assert capsys.readouterr().err == f"{tmp_path}: left out: 1 .csv\n"


def unreadable(folder, monkeypatch):
    """Makes the listing of one folder fail: permissions would not stop root."""
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).rstrip("/") == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize(
    "read", [find_images, lambda root: open_inputs([root]), lambda root: collect(root)]
)
def test_folder_that_cannot_be_read_is_named(read, tmp_path, monkeypatch):
    (tmp_path / "a" / "closed").mkdir(parents=True)
    write_image(tmp_path / "a" / "eye.png", PICTURE)
    unreadable(tmp_path / "a" / "closed", monkeypatch)
    with pytest.raises(DataError, match=r"a/closed: this folder cannot be read: Permission denied"):
        read(tmp_path)


def test_broken_links_are_listed_as_failures(tmp_path):
    write_image(tmp_path / "eye.png", PICTURE)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    eye, gone, loop = open_inputs([tmp_path]).read()
    assert isinstance(eye, Item)
    assert isinstance(gone, Failure) and "gone.png: cannot be read: No such file" in gone.reason
    assert isinstance(loop, Failure) and "loop.png: cannot be read: Too many level" in loop.reason


def test_tiles_are_counted_and_links_followed_once(tmp_path):
    said = []
    write_image(tmp_path / "hrf" / "p0" / "0.png", PICTURE)
    (tmp_path / "hrf" / "p0" / "again").symlink_to(tmp_path / "hrf")
    (tmp_path / "hrf" / "p0" / "loop.png").symlink_to("loop.png")
    (tmp_path / "hrf" / "grades.csv").touch()
    tiles = collect(tmp_path, patients_unknown=True, val=0, test=0, report=said.append)
    assert tiles.paths == ["hrf/p0/0.png", "hrf/p0/loop.png"] and tiles.sizes[1] == -1
    assert f"{tmp_path}: left out: 1 .csv" in said


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "JPEG2000"])
def test_images_without_a_suffix_are_found(kind, tmp_path):
    (tmp_path / "eye").write_bytes(encode(Image.fromarray(PICTURE), kind))
    (tmp_path / "sound").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    found = find_images(tmp_path)
    assert [path.name for path in found.paths] == ["eye"] and found.left_out == {"": 1}
