"""Assignment of photographs to patients and splits. A patient is never in two splits."""

import collections
import csv
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vae.data.errors import DataError, UsageError
from vae.data.images import IMAGE_SUFFIXES
from vae.data.names import composed, label_of, shorten

SPLITS = ("train", "val", "test")
REGEX_EXAMPLE = (
    "--patient_regex '([^/_]+)_[^/]*$' makes hrf/p01_L and hrf/p01_R two photographs of patient p01"
)


class _Known(NamedTuple):
    """Patient, label and split of a photograph; `split` is "" if the user named none."""

    patient: str
    label: str
    split: str


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """Names of a photograph, its patient, label and split, in Unicode NFC (`vae.data.names`)."""

    photograph: str
    patient: str
    label: str
    split: str


@dataclasses.dataclass(slots=True)
class _Person:
    """One patient, or several who share copies of a photograph and therefore a split.

    Attributes:
      names: Names of the patients.
      labels: Labels of their photographs.
      named: The split that the user named, or "".
      draw: Number in [0, 1) that decides the split.
      split: The final split.
    """

    names: list[str]
    labels: list[str]
    named: str = ""
    draw: float = 0.0
    split: str = ""


def assign_splits(
    photographs: Sequence[str],
    *,
    searched: Sequence[str] | None = None,
    patients: str | os.PathLike | None = None,
    patient_regex: str | None = None,
    val: float = 0.1,
    test: float = 0.1,
    stratify: str | None = None,
    copies: Sequence[Sequence[str]] = (),
    photograph_is_patient: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Assignment]:
    """Assigns every photograph a patient, a label and a split.

    Patients come from the CSV file, else from the regular expression; else each photograph is a
    patient of its own. If the file names no split, a hash of the patient's name decides it, so the
    split stays the same when photographs are added. There are two exceptions. A split that would be
    empty takes the patient with the nearest hash, until the hash of some patient falls into it.
    With `stratify`, the rank of a patient among those of the same label decides.

    Args:
      photographs: Ids "<folders>/<stem>", each once; the last folder is the label.
      searched: The text of each photograph to search with `patient_regex`; None for the ids.
      patients: CSV file with the columns photograph and patient, and optionally label and split.
        `photograph` is an id or the end of one ("<stem>", "<folder>/<stem>"), with or without an
        image suffix. The label of the file replaces the name of the folder.
      patient_regex: Regular expression; its first group, else the whole match, is the patient.
      val: Share of the patients for validation, 0 to 1; 0 requests an empty split.
      test: Share of the patients for the test, 0 to 1; 0 requests an empty split.
      stratify: "label" applies the shares to the patients of each label; None to all patients.
      copies: Groups of photographs whose files have the same content. A group shares a split: it is
        one patient if patients are unknown, else all its patients are put into one split.
      photograph_is_patient: Without `patients` and `patient_regex`, accepts each photograph as its
        own patient.
      report: Receives one-line warnings.

    Returns:
      An assignment for each given id, in the given order.

    Raises:
      UsageError: A share or the expression is invalid, or patients are unknown and
        `photograph_is_patient` is false.
      DataError: The file is unreadable or contradicts itself; photographs are missing from it or
        do not match the expression; or there are not enough patients for the splits.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"val {val} and test {test}: expected shares from 0, together below 1")
    if patients is not None and patient_regex is not None:
        raise UsageError("both patients and patient_regex are given: choose one")
    if stratify not in (None, "label"):
        raise UsageError(f"stratify {stratify!r}: expected label")
    ids = [composed(id) for id in photographs]
    copies = [[composed(id) for id in group] for group in copies]
    if copies:
        count = sum(len(group) - 1 for group in copies)
        said = (
            "photographs are copies of others" if count > 1 else "photograph is a copy of another"
        )
        report(f"{count:,} {said}, byte for byte; copies share a split: {_listed(copies)}")
    if patients is not None:
        rows = _from_csv(Path(patients), ids, report)
    elif patient_regex is not None:
        rows = _from_regex(patient_regex, ids, ids if searched is None else searched, report)
    elif photograph_is_patient:
        first = {id: group[0] for group in copies for id in group}
        rows = [_Known(first.get(id, id), label_of(id), "") for id in ids]
    else:
        raise UsageError(
            "the patients are not given; without them, tiles of one patient may leak between "
            f"splits: {REGEX_EXAMPLE}; --patients_unknown accepts each photograph as its own "
            "patient"
        )
    known = dict(zip(ids, rows, strict=True))
    persons = _persons(known, copies, report)
    distinct = list({id(person): person for person in persons.values()}.values())
    _choose(distinct, val, test, stratify, report)
    return {
        given: Assignment(id, row.patient, row.label, persons[row.patient].split)
        for given, (id, row) in zip(photographs, known.items(), strict=True)
    }


def _from_regex(
    expression: str, ids: Sequence[str], searched: Sequence[str], report: Callable[[str], None]
) -> list[_Known]:
    """Finds the patient in the path of each photograph.

    Args:
      expression: Regular expression; its first group, else the whole match, is the patient.
      ids: Ids of the photographs, in Unicode NFC.
      searched: The text of each photograph to search.
      report: Receives a line if patients differ only in their folders.

    Raises:
      UsageError: `expression` is not a regular expression.
      DataError: The expression finds no patient in some photographs.
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
            f" without the suffix, for example in {unmatched[0]!r}; for the beginning of a file's"
            f" name write (?:^|/) instead of ^"
        )
    by_name = collections.defaultdict(set)
    for patient in patients:
        by_name[patient.rpartition("/")[2]].add(patient)
    alike = [" and ".join(sorted(names)) for names in by_name.values() if len(names) > 1]
    if alike:
        report(
            f"patient_regex {expression!r} makes folders a part of the patient's name:"
            f" {shorten(alike)} count as different people; if they are the same person, match the"
            f" characters of a name with [^/]"
        )
    return [_Known(patient, label_of(id), "") for id, patient in zip(ids, patients, strict=True)]


def _from_csv(path: Path, ids: Sequence[str], report: Callable[[str], None]) -> list[_Known]:
    """Reads patients, labels and splits.

    Args:
      path: CSV file with the columns photograph and patient, and optionally label and split.
      ids: Ids of the photographs, in Unicode NFC.
      report: Receives a line on rows that match no photograph.

    Raises:
      DataError: The file is unreadable or contradicts itself, or photographs are missing from it.
    """
    rows = _read_patients(path)
    by_tail: dict[str, list[str]] = {}
    for id in ids:
        for tail in _tails(id):
            by_tail.setdefault(tail, []).append(id)

    found: dict[str, _Known] = {}
    unmatched = []
    for line, row in rows:
        matches = _matching(row["photograph"], by_tail)
        if len(matches) > 1:  # The label may tell files of one name apart.
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
        found[id] = _Known(row["patient"], row["label"] or label_of(id), row["split"])
    if unmatched:
        report(f"{path}: {len(unmatched)} rows match no photograph: {shorten(unmatched)}")
    if missing := [id for id in ids if id not in found]:
        raise DataError(
            f"{path}: lacks {len(missing)} of {len(ids)} photographs: {shorten(missing)}"
        )
    return [found[id] for id in ids]


def _tails(id: str) -> Iterator[str]:
    """Returns an id and its ends: "a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = id.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _matching(name: str, by_tail: Mapping[str, list[str]]) -> list[str]:
    """Returns the ids that a name may mean: the id equal to it, else those that end with it."""
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
        raise DataError(f"{path}: is not a UTF-8 CSV file: {error}") from error

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


def _draw(name: str) -> float:
    digest = hashlib.blake2b(composed(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _cut(draw: float, val: float, test: float) -> str:
    if draw < test:
        return "test"
    return "val" if draw < test + val else "train"


def _listed(copies: Iterable[Sequence[str]]) -> str:
    return shorten(" = ".join(group) for group in copies)


def _persons(
    known: dict[str, _Known], copies: Sequence[Sequence[str]], report: Callable[[str], None]
) -> dict[str, _Person]:
    """Returns the `_Person` of each patient's name.

    Raises:
      DataError: The user named two splits for one person.
    """
    persons: dict[str, _Person] = {}
    named: dict[str, str] = {}  # patient: photograph
    for photograph, row in known.items():
        person = persons.setdefault(row.patient, _Person([row.patient], []))
        person.labels.append(row.label)
        if not row.split:
            continue
        other = named.setdefault(row.patient, photograph)
        if person.named and person.named != row.split:
            raise DataError(
                f"patient {row.patient!r} is in {person.named} ({other}) and in {row.split}"
                f" ({photograph}); a patient belongs to one split: correct the file, or give"
                f" different people different names"
            )
        person.named = row.split
    joined = []
    for group in copies:
        first, person = group[0], persons[known[group[0]].patient]
        for photograph in group[1:]:
            other = persons[known[photograph].patient]
            if other is person:
                continue
            if person.named and other.named and person.named != other.named:
                raise DataError(
                    f"{first} is in {person.named} and {photograph} in {other.named} by the splits"
                    f" of their patients, and their files have the same content: name one split for"
                    f" patients {', '.join(map(repr, sorted(person.names + other.names)))}, or"
                    f" remove one of the files"
                )
            joined.append(group)
            person.names += other.names
            person.labels += other.labels
            person.named = person.named or other.named
            persons.update(dict.fromkeys(other.names, person))
    if joined:
        people = {min(person.names): sorted(person.names) for person in persons.values()}
        report(
            "patients with different names share copies and are put into one split: "
            + shorten(" and ".join(names) for names in people.values() if len(names) > 1)
        )
    return persons


def _choose(
    people: Sequence[_Person],
    val: float,
    test: float,
    stratify: str | None,
    report: Callable[[str], None],
) -> None:
    """Sets the split of each person.

    Raises:
      DataError: No patient is left for a split.
    """
    for person in people:
        person.draw = _draw(min(person.names))
    if stratify:
        _spread(people)
    for person in people:
        person.split = person.named or _cut(person.draw, val, test)
    # The test split has the lowest draws and train the highest.
    for split, share in (("test", test), ("val", val), ("train", 1.0)):
        present = collections.Counter(person.split for person in people)
        if not share or present[split]:
            continue
        movable = [p for p in people if not p.named and present[p.split] > 1]
        if not movable:
            way_out = "name splits in a --patients file"
            if split != "train":
                way_out = f"request an empty split with --{split} 0, or {way_out}"
            raise DataError(
                f"split {split} is empty: none of {len(people)} patients can be put into it;"
                f" {way_out}"
            )
        order = sorted(movable, key=lambda person: (person.draw, min(person.names)))
        moved = order[-1 if split == "train" else 0]
        report(
            f"the hash of the name puts no patient into {split}: {min(moved.names)!r} is moved"
            f" there from {moved.split}"
        )
        moved.split = split


def _spread(people: Sequence[_Person]) -> None:
    """Replaces draws by evenly spaced ones within each label: a systematic sample per label.

    The draws of a label begin at a hash of the label. With many labels of few people each, the
    splits still have the right shares of all people.
    """
    by_label = collections.defaultdict(list)
    for person in people:
        if not person.named:
            counts = collections.Counter(person.labels)
            by_label[max(sorted(counts), key=counts.get)].append(person)
    for label, group in by_label.items():
        group.sort(key=lambda person: (person.draw, min(person.names)))
        for place, person in enumerate(group):
            person.draw = (place + _draw(label)) / len(group)
