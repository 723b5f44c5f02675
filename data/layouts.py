"""Names of photographs in public data sets, and how they tell the patient.

Each expression is searched in the path of a photograph below its folder, without the suffix.
docs/datasets.md says more on each set.
"""

import dataclasses

from vae.data.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """File names of a data set.

    Attributes:
      example: A photograph's path without the suffix.
      patient_regex: Finds the patient; None if the names do not tell whose the photographs are.
    """

    example: str
    patient_regex: str | None


LAYOUTS = {
    "eyepacs": Layout("train/10_left", r"(?:^|/)(\d+)_(?:left|right)$"),
    "aptos": Layout("train_images/000c1434d8d7", None),
    "messidor2": Layout("IMAGES/20051020_43808_0100_PP", None),
    "odir": Layout("ODIR-5K_Training_Images/0_left", r"(?:^|/)(\d+)_(?:left|right)$"),
    "idrid": Layout("a. Training Set/IDRiD_01", None),
    "hrf": Layout("images/01_dr", r"(?:^|/)(\d+_(?:dr|g|h))$"),
    "fives": Layout("train/Original/1_A", None),
    "chase_db1": Layout("Image_01L", r"(?:^|/)Image_(\d+)[LR]$"),
    "drive": Layout("training/images/21_training", None),
    "refuge": Layout("Training400/Glaucoma/g0001", None),
    "papila": Layout("FundusImages/RET002OD", r"(?:^|/)RET(\d+)O[DS]$"),
    "rfmid": Layout("Training/1", None),
    "mfiddr": Layout("m01_L5", r"(?:^|/)(m\d+)_[LR]\d$"),
    "ukbiobank": Layout("1234567_21015_0_0", r"(?:^|/)(\d{7})_2101[56]_\d_\d$"),
}


def with_layout(options: dict) -> dict:
    """Replaces the option `layout` of make-tiles and build by the options that it stands for.

    Raises:
      UsageError: Patients are given, too.
    """
    options = dict(options)
    if (name := options.pop("layout")) is None:
        return options
    given = [key for key in ("patients", "patient_regex") if options[key]]
    expression = LAYOUTS[name].patient_regex
    if expression is None:
        # The names do not tell; a table does, if there is one.
        return options if given else options | {"patients_unknown": True}
    if given:
        raise UsageError(f"--layout {name} and --{given[0]} both tell the patients: choose one")
    return options | {"patient_regex": expression}
