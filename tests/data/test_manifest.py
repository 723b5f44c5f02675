import dataclasses
import unicodedata

import pytest

from vae.data.errors import DataError
from vae.data.fov import FieldOfView
from vae.data.manifest import (
    PhotographRow,
    TileRow,
    read_manifest,
    read_photographs,
    write_manifest,
    write_photographs,
)

HEADER = (
    "tile,photograph,patient,label,split,y,x,scale,photo_height,photo_width,"
    "fov_x,fov_y,fov_radius,fov_top,fov_bottom,fov_left,fov_right,fov_share"
)


def tile(name="é/a b/a b_y0_x1.png", **changes):
    row = TileRow(name, "é/a b", "p,1", "é", "train", 0, 1, 0.125, 960, 999,
                  492.0625, 478.5, 460.0, 19.0, 938.0, 32.5, 952.0, 0.9375)  # fmt: skip
    return dataclasses.replace(row, **changes)


def photograph(name="é/a b"):
    return PhotographRow(name, "p,1", "é", "val", "/scans/a b.jpg", 960, 999, 1.0,
                         492.0625, 478.5, 460.0, 19.0, 938.0, 32.5, 952.0, 0.0012)  # fmt: skip


def test_tables_round_trip(tmp_path):
    rows = [tile(), tile("é/a b/a b_y8_x1.jpg", y=8)]
    write_manifest(tmp_path / "manifest.csv", rows)
    assert (tmp_path / "manifest.csv").read_text(encoding="utf-8").splitlines()[0] == HEADER
    assert list(read_manifest(tmp_path / "manifest.csv")) == rows
    write_photographs(tmp_path / "photographs.csv", [photograph()])
    assert read_photographs(tmp_path / "photographs.csv") == [photograph()]


def test_rows_give_their_id_and_field_of_view():
    assert tile().tile_id == "é/a b/a b_y0_x1"
    assert (
        tile().fov
        == photograph().fov
        == (FieldOfView(492.0625, 478.5, 460.0, 19.0, 938.0, 32.5, 952.0))
    )


def test_byte_order_mark_and_additional_columns_are_accepted(tmp_path):
    write_manifest(tmp_path / "m.csv", [tile()])
    header, row = (tmp_path / "m.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "m.csv").write_text(f"\ufeff{header},note\r\n{row},good\r\n", encoding="utf-8")
    assert list(read_manifest(tmp_path / "m.csv")) == [tile()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([tile(), tile()], "line 3: a second row for tile"),
        ([tile(), tile("é/a b/a b_y0_x1.jpg")], "line 3: a second row for tile"),
        ([tile(split="valid")], "line 2: split is 'valid', expected one of train, val, test"),
        ([tile(), tile("b.png", split="test")], "line 3: patient 'p,1' is in train and in test"),
        ([tile("/etc/a.png")], "outside the folder"),
        ([tile("a/../../b.png")], "outside the folder"),
        ([tile(y="high")], "line 2: y is 'high', expected an integer"),
        ([tile(patient="")], "line 2: no patient"),
        ([], "no rows"),
    ],
)
def test_faulty_rows_are_refused(tmp_path, rows, message):
    write_manifest(tmp_path / "manifest.csv", rows)
    with pytest.raises(DataError, match=message):
        list(read_manifest(tmp_path / "manifest.csv"))


def test_composed_and_decomposed_accents_are_the_same_name(tmp_path):
    """Otherwise a patient could be in two splits, and a tile be listed twice."""
    row = tile()
    other = dataclasses.replace(
        row,
        **{name: unicodedata.normalize("NFD", getattr(row, name)) for name in
           ("tile", "photograph", "label")},
    )  # fmt: skip
    write_manifest(tmp_path / "m.csv", [other])
    # Names are composed; the path of a file is not changed.
    assert list(read_manifest(tmp_path / "m.csv")) == [dataclasses.replace(row, tile=other.tile)]
    write_manifest(tmp_path / "m.csv", [row, other])
    with pytest.raises(DataError, match="line 3: a second row for tile"):
        list(read_manifest(tmp_path / "m.csv"))
    jörg = unicodedata.normalize("NFC", "Jörg"), unicodedata.normalize("NFD", "Jörg")
    rows = [tile(patient=jörg[0]), tile("b.png", patient=jörg[1], split="test")]
    write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(DataError, match="patient 'Jörg' is in train and in test"):
        list(read_manifest(tmp_path / "m.csv"))
    name = unicodedata.normalize("NFD", "é/a b")
    write_photographs(tmp_path / "p.csv", [photograph(), photograph(name)])
    with pytest.raises(DataError, match="line 3: a second row"):
        read_photographs(tmp_path / "p.csv")


def test_faulty_files_are_refused(tmp_path):
    path = tmp_path / "manifest.csv"
    with pytest.raises(DataError, match="cannot be read"):
        list(read_manifest(path))
    path.write_text("tile,photograph,patient\n")
    with pytest.raises(DataError, match=r"lacks the column\(s\) label, split"):
        list(read_manifest(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a UTF-8 CSV"):
        list(read_manifest(path))
    path.write_text(HEADER + "\na.png,cut,off\n")
    with pytest.raises(DataError, match="line 2: no label"):
        list(read_manifest(path))
    write_photographs(path, [photograph(), photograph()])
    with pytest.raises(DataError, match="line 3: a second row"):
        read_photographs(path)


def test_a_failed_write_keeps_the_old_table(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [tile()])

    def rows():
        yield tile()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_manifest(path, rows())
    assert list(read_manifest(path)) == [tile()]
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [tile(), tile(split="nonsense")])
    rows = read_manifest(path)
    assert next(rows) == tile()
    with pytest.raises(DataError):
        next(rows)
