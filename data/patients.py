"""Reads the patients of photographs from a CSV file, or finds them by a regular expression."""

import collections
import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vae.data.errors import DataError, UsageError
from vae.data.images import IMAGE_SUFFIXES
from vae.data.names import composed, label_of, shorten

SPLITS = ("train", "val", "test")


class Known(NamedTuple):
    """Patient, label and split of a photograph; `split` is "" where nobody named one."""

    patient: str
    label: str
    split: str


def from_regex(
    expression: str, ids: Sequence[str], searched: Sequence[str], report: Callable[[str], None]
) -> list[Known]:
    """Finds the patient in the path of each photograph.

    Args:
      expression: The first group, else the whole match, is the patient.
      ids: Ids of the photographs, composed.
      searched: The text that the expression is searched in, for each photograph.
      report: Receives a line where folders alone tell patients apart.

    Raises:
      UsageError: `expression` is no regular expression.
      DataError: It finds no patient in some photographs.
    """
    try:
        pattern = re.compile(composed(expression))
    except re.error as error:
        raise UsageError(
            f"patient_regex {expression!r} is no regular expression: {error}"
        ) from None
    matches = [pattern.search(composed(text)) for text in searched]
    patients = [(m[1] if pattern.groups else m[0]) if m else "" for m in matches]
    unmatched = [composed(t) for t, patient in zip(searched, patients, strict=True) if not patient]
    if unmatched:
        raise DataError(
            f"patient_regex {expression!r} finds no patient in {len(unmatched)} of {len(ids)}"
            f" photographs: {shorten(unmatched)}; it is searched in the path below the folder,"
            f" without the suffix, for example in {unmatched[0]!r}; where ^ is to be the beginning"
            f" of a file's name, write (?:^|/)"
        )
    by_name = collections.defaultdict(set)
    for patient in patients:
        by_name[patient.rpartition("/")[2]].add(patient)
    alike = [" and ".join(sorted(names)) for names in by_name.values() if len(names) > 1]
    if alike:
        report(
            f"patient_regex {expression!r} takes folders for a part of the patient:"
            f" {shorten(alike)} count as different people; if they are not, write [^/] for the"
            f" characters of a name"
        )
    return [Known(patient, label_of(id), "") for id, patient in zip(ids, patients, strict=True)]


def from_csv(path: Path, ids: Sequence[str], report: Callable[[str], None]) -> list[Known]:
    """Reads patients, labels and splits.

    Args:
      path: CSV file with the columns photograph and patient, and optionally label and split.
      ids: Ids of the photographs, composed.
      report: Receives a line on rows of no photograph.

    Raises:
      DataError: The file is unreadable or contradicts itself, or photographs are missing from it.
    """
    rows = _read_patients(path)
    by_tail: dict[str, list[str]] = {}
    for id in ids:
        for tail in _tails(id):
            by_tail.setdefault(tail, []).append(id)

    found: dict[str, Known] = {}
    unmatched = []
    for line, row in rows:
        matches = _matching(row["photograph"], by_tail)
        if len(matches) > 1:  # the same file name in several folders: the label may tell
            matches = [id for id in matches if label_of(id) == row["label"]] or matches
        if not matches:
            unmatched.append(row["photograph"])
            continue
        if len(matches) > 1:
            raise DataError(
                f"{path} line {line}: {row['photograph']!r} may be {shorten(matches)}; write its"
                f" folder too, folder/name"
            )
        (id,) = matches
        if id in found:
            raise DataError(f"{path} line {line}: a second row for {id!r}")
        found[id] = Known(row["patient"], row["label"] or label_of(id), row["split"])
    if unmatched:
        report(f"{path}: {len(unmatched)} rows match no photograph: {shorten(unmatched)}")
    if missing := [id for id in ids if id not in found]:
        raise DataError(
            f"{path}: lacks {len(missing)} of {len(ids)} photographs: {shorten(missing)}"
        )
    return [found[id] for id in ids]


def _tails(id: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = id.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _matching(name: str, by_tail: Mapping[str, list[str]]) -> list[str]:
    """The ids that a row may mean: the one it is, else those it is a tail of."""
    forward = name.replace("\\", "/").removeprefix("./")
    for form in (name, forward, _without_suffix(forward)):
        if matches := by_tail.get(form):
            return [form] if form in matches else matches
    return []


def _without_suffix(name: str) -> str:
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


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
        row = {
            column: composed((row.get(column) or "").strip())
            for column in ("photograph", "patient", "label", "split")
        }
        for column in ("photograph", "patient"):
            if not row[column]:
                raise DataError(f"{path} line {line}: no {column}")
        if row["split"] and row["split"] not in SPLITS:
            raise DataError(
                f"{path} line {line}: split is {row['split']!r}, expected one of"
                f" {', '.join(SPLITS)}, or nothing"
            )
        cleaned.append((line, row))
    return cleaned
