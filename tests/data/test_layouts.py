"""`--layout`: the patients in names of public data sets."""

import pytest

from vae.cli import main
from vae.data.errors import DataError, UsageError
from vae.data.images import write_image
from vae.data.layouts import LAYOUTS, with_layout
from vae.data.manifest import read_manifest
from vae.data.splits import assign_splits
from vae.data.synthetic import fundus_photograph

# Names of a set, and the patients that they name.
NAMES = {
    "eyepacs": {"train/10_left": "10", "train/10_right": "10", "13_left": "13"},
    "odir": {"Training Images/0_left": "0", "Training Images/0_right": "0", "4784_left": "4784"},
    "hrf": {"images/01_dr": "01_dr", "images/01_h": "01_h", "15_g": "15_g"},
    "chase_db1": {"Image_01L": "01", "Image_01R": "01", "images/Image_14L": "14"},
    "papila": {"FundusImages/RET002OD": "002", "FundusImages/RET002OS": "002", "RET010OD": "010"},
    "mfiddr": {"m01_L5": "m01", "m01_R1": "m01", "sample/m10_R4": "m10"},
    "ukbiobank": {
        "1234567_21015_0_0": "1234567",
        "21016/1234567_21016_1_0": "1234567",
        "7654321_21016_0_0": "7654321",
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_patients_of_names(name):
    layout, patients = LAYOUTS[name], NAMES[name]

    def found(names):
        options = {"patient_regex": layout.patient_regex, "val": 0, "test": 0}
        rows = assign_splits([f"eyes/{name}" for name in names], searched=names, **options)
        return [row.patient for row in rows.values()]

    assert found(list(patients)) == list(patients.values())
    assert all(found([layout.example]))
    with pytest.raises(DataError, match="finds no patient"):
        found(["IMG_0001"])


def test_the_other_sets_do_not_name_patients():
    silent = {"aptos", "messidor2", "idrid", "fives", "drive", "refuge", "rfmid"}
    assert set(LAYOUTS) == silent | set(NAMES)
    for name in silent:
        assert LAYOUTS[name].patient_regex is None
    given = {"layout": "aptos", "patients": None, "patient_regex": None, "patients_unknown": False}
    assert with_layout(given)["patients_unknown"]
    assert not with_layout(given | {"patients": "p.csv"})["patients_unknown"]
    with pytest.raises(UsageError, match="--layout odir and --patients both tell"):
        with_layout(given | {"layout": "odir", "patients": "p.csv"})


def test_the_command(tmp_path, capsys):
    for number, name in enumerate(("1_left", "1_right", "2_left", "3_right")):
        write_image(tmp_path / "eyes" / f"{name}.png", fundus_photograph(number, 200))
    command = [
        "make-tiles",
        "--photographs",
        str(tmp_path / "eyes"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--layout", "eyepacs", "--tile", "64", "--stride", "64", "--workers", "1"]
    assert main(command) == 0
    rows = read_manifest(tmp_path / "out" / "manifest.csv")
    splits = {(row.patient, row.split) for row in rows}
    assert {patient for patient, _ in splits} == {"1", "2", "3"} and len(splits) == 3
    assert {split for _, split in splits} == {"train", "val", "test"}
    assert main([*command, "--patient_regex", "(.)"]) == 2
    assert "choose one" in capsys.readouterr().err


def test_photographs_are_refused_as_tiles(tmp_path, capsys):
    for number in range(3):
        photograph = fundus_photograph(number, 420)
        write_image(tmp_path / "eyes" / "healthy" / "a" / f"{number}.png", photograph)
    command = ["build", "--tiles", str(tmp_path / "eyes"), "--data_dir", str(tmp_path / "dataset")]
    assert main([*command, "--patients_unknown"]) == 1
    error = capsys.readouterr().err
    assert "these are photographs" in error and "fundus-vae make-tiles --photographs" in error
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(("tile", "fits"), [("250", "248 or 256"), ("5", "8 fits")])
def test_a_tile_that_no_model_takes_is_refused(tile, fits, tmp_path, capsys):
    command = ["make-tiles", "--photographs", str(tmp_path), "--out", "out", "--tile", tile]
    assert main(command) == 2
    assert fits in capsys.readouterr().err
