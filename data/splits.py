"""Which photograph belongs to which patient and split. A patient is never in two splits."""

import csv
import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data.errors import DataError, UsageError
from data.images import IMAGE_SUFFIXES

SPLITS = ("train", "val", "test")

_SHOWN = 5  # names listed in a message before "and n more"
REGEX_EXAMPLE = "--patient_regex '^([^_]+)_' makes p01_L and p01_R two photographs of patient p01"


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """What is known of a photograph besides its pixels."""

    photograph: str
    patient: str
    label: str
    split: str


def assign_splits(
    photographs: Sequence[str],
    *,
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    val: float = 0.1,
    test: float = 0.1,
    photograph_is_patient: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Assignment]:
    """Gives every photograph a patient, a label and a split.

    Patients come from the CSV file, else from the regular expression, else each photograph is its
    own. A split that the file does not name follows from a hash of the patient, so it stays the
    same when photographs are added.

    Args:
      photographs: Ids "<folder>/<stem>".
      patients: CSV file with the columns photograph and patient, and optionally label and split.
        `photograph` is a file name with or without suffix, or "<folder>/<file name>". Its label
        replaces the folder's.
      patient_regex: Searched in each photograph's stem; the first group, else the whole match, is
        the patient.
      val: Share of the patients for validation; 0 wants the split empty.
      test: Share of the patients for the test; 0 wants the split empty.
      photograph_is_patient: Whether photographs without any word on patients are accepted, each as
        its own patient.
      report: Receives a line on what looks wrong but is no error.

    Returns:
      An assignment for each given id, in the given order. Where a label was replaced, the
      assignment's `photograph` is "<new label>/<stem>".

    Raises:
      UsageError: A share or the expression is no good, or nothing tells patients apart and
        `photograph_is_patient` is false.
      DataError: The file is unreadable or contradicts itself, photographs are missing from it or
        do not match the expression, or a split would be empty.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"val {val} and test {test}: expected shares from 0, together below 1")
    if patients is not None and patient_regex is not None:
        raise UsageError("both patients and patient_regex are given: choose one")
    if patients is not None:
        known = _from_csv(Path(patients), photographs, report)
    elif patient_regex is not None:
        known = _from_regex(patient_regex, photographs)
    elif photograph_is_patient:
        known = [Assignment(id, id, id.split("/")[0], "") for id in photographs]
    else:
        raise UsageError(
            f"no word on patients, and tiles of one patient in two splits would leak:"
            f" {REGEX_EXAMPLE}; --patients_unknown accepts each photograph as its own patient"
        )
    assigned = _complete(known, val, test)
    _refuse_empty({a.split for a in assigned}, len({a.patient for a in assigned}), val, test)
    return dict(zip(photographs, assigned, strict=True))


def hash_split(patient: str, val: float, test: float) -> str:
    """The split of a patient, a function of the name and the shares only."""
    # Composed and decomposed accents are the same name: file systems differ in which they keep.
    name = unicodedata.normalize("NFC", patient).encode()
    draw = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64
    if draw < test:
        return "test"
    return "val" if draw < test + val else "train"


def _complete(known: Sequence[Assignment], val: float, test: float) -> list[Assignment]:
    """Fills in missing splits: the patient's where a row names it, else by hash."""
    named: dict[str, Assignment] = {}
    for row in known:
        if row.split and (other := named.setdefault(row.patient, row)).split != row.split:
            raise DataError(
                f"patient {row.patient!r} is in {other.split} ({other.photograph}) and in"
                f" {row.split} ({row.photograph}); a patient belongs to one split: correct the"
                f" file, or give different people different names"
            )
    splits = {patient: row.split for patient, row in named.items()}
    return [
        dataclasses.replace(
            row, split=splits.get(row.patient) or hash_split(row.patient, val, test)
        )
        for row in known
    ]


def _refuse_empty(present: set[str], patients: int, val: float, test: float) -> None:
    wanted = {"train": 1.0, "val": val, "test": test}
    for split in SPLITS:
        if wanted[split] and split not in present:
            way_out = "name splits in a --patients file"
            if split != "train":
                way_out = f"--{split} 0 wants none, a larger share may help, or {way_out}"
            raise DataError(
                f"split {split} is empty: none of {patients} patients is in it; {way_out}"
            )


def _from_regex(expression: str, photographs: Sequence[str]) -> list[Assignment]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UsageError(
            f"patient_regex {expression!r} is no regular expression: {error}"
        ) from None
    matches = {id: pattern.search(id.split("/", 1)[1]) for id in photographs}
    patients = {id: (m[1] if pattern.groups else m[0]) if m else "" for id, m in matches.items()}
    unmatched = [id for id, patient in patients.items() if not patient]
    if unmatched:
        raise DataError(
            f"patient_regex {expression!r} finds no patient in {len(unmatched)} of"
            f" {len(photographs)} photographs: {shorten(unmatched)}"
        )
    return [Assignment(id, patients[id], id.split("/")[0], "") for id in photographs]


def _from_csv(
    path: Path, photographs: Sequence[str], report: Callable[[str], None]
) -> list[Assignment]:
    rows = _read_patients(path)
    by_name: dict[str, list[str]] = {}
    for id in photographs:
        for name in (id, id.split("/", 1)[1]):
            by_name.setdefault(_normal(name), []).append(id)

    found: dict[str, Assignment] = {}
    unmatched = []
    for line, row in rows:
        ids = by_name.get(_normal(row["photograph"]), [])
        if len(ids) > 1:  # the same file name in several folders: the label may tell
            ids = [id for id in ids if id.split("/")[0] == row["label"]] or ids
        if not ids:
            unmatched.append(row["photograph"])
            continue
        if len(ids) > 1:
            raise DataError(
                f"{path} line {line}: {row['photograph']!r} may be {shorten(ids)}; write"
                f" folder/name"
            )
        if ids[0] in found:
            raise DataError(f"{path} line {line}: a second row for {ids[0]!r}")
        folder, stem = ids[0].split("/", 1)
        label = row["label"] or folder
        found[ids[0]] = Assignment(f"{label}/{stem}", row["patient"], label, row["split"])
    if unmatched:
        report(f"{path}: {len(unmatched)} rows match no photograph: {shorten(unmatched)}")
    if missing := [id for id in photographs if id not in found]:
        raise DataError(
            f"{path}: lacks {len(missing)} of {len(photographs)} photographs: {shorten(missing)}"
        )
    return [found[id] for id in photographs]


def _read_patients(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for column in ("photograph", "patient"):
                if column not in columns:
                    raise DataError(
                        f"{path}: lacks the column {column!r}; expected"
                        f" photograph,patient[,label][,split], found {','.join(columns)}"
                    )
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no UTF-8 CSV file: {error}") from error

    cleaned = []
    for line, row in rows:
        row = {c: (row.get(c) or "").strip() for c in ("photograph", "patient", "label", "split")}
        for column in ("photograph", "patient"):
            if not row[column]:
                raise DataError(f"{path} line {line}: no {column}")
        if row["split"] and row["split"] not in SPLITS:
            raise DataError(
                f"{path} line {line}: split is {row['split']!r}, expected one of"
                f" {', '.join(SPLITS)}, or nothing"
            )
        if "/" in row["label"] or row["label"].startswith("."):
            raise DataError(f"{path} line {line}: label {row['label']!r} is no name of a folder")
        cleaned.append((line, row))
    return cleaned


def _normal(name: str) -> str:
    """A photograph's name as it is compared: forward slashes, no image suffix, accents composed."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def shorten(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
