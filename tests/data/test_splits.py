import collections
import unicodedata

import pytest

from data.errors import DataError, UsageError
from data.splits import assign_splits, hash_split

MANY = [f"{label}/p{i:03d}_{eye}" for label in "ab" for i in range(100) for eye in "LR"]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_photographs_are_their_own_patients():
    assigned = assign_splits(MANY)
    assert list(assigned) == MANY
    assert all(a.patient == a.photograph == id for id, a in assigned.items())
    assert {a.label for a in assigned.values()} == {"a", "b"}
    counts = collections.Counter(a.split for a in assigned.values())
    # 400 draws with probability 0.1: five standard deviations are 30.
    assert 10 < counts["val"] < 70
    assert 10 < counts["test"] < 70


def test_no_two_splits_share_a_patient():
    assigned = assign_splits(MANY, patient_regex=r"^(p\d+)_", val=0.3, test=0.3)
    splits = collections.defaultdict(set)
    for a in assigned.values():
        splits[a.patient].add(a.split)
    assert len(splits) == 100
    assert all(len(found) == 1 for found in splits.values())


def test_adding_photographs_moves_none():
    before = assign_splits(MANY[:200], val=0.2, test=0.2)
    after = assign_splits(["0/new", *MANY, "z/new"], val=0.2, test=0.2)
    assert all(after[id] == a for id, a in before.items())


def test_hash_split_takes_its_shares_and_ignores_the_form_of_accents():
    name = "Müller"
    decomposed = unicodedata.normalize("NFD", name)
    assert decomposed != name
    assert all(
        hash_split(f"{name}{i}", 0.3, 0.3) == hash_split(f"{decomposed}{i}", 0.3, 0.3)
        for i in range(20)
    )
    assert {hash_split(str(i), 0, 0) for i in range(50)} == {"train"}
    # What is in test stays there when the share of val changes.
    assert all(
        hash_split(str(i), 0.5, 0.2) == "test"
        for i in range(50)
        if hash_split(str(i), 0.0, 0.2) == "test"
    )


def test_regex_takes_the_first_group_or_the_match():
    ids = ["a/01_L", "a/01_R", "a/02_L"]
    options = {"val": 0, "test": 0}
    grouped = assign_splits(ids, patient_regex=r"^(\d+)_", **options)
    assert [a.patient for a in grouped.values()] == ["01", "01", "02"]
    matched = assign_splits(ids, patient_regex=r"\d+_", **options)
    assert [a.patient for a in matched.values()] == ["01_", "01_", "02_"]


def test_regex_must_match_all_and_be_one():
    with pytest.raises(DataError, match=r"no patient in 2 of 3 photographs: a/x, b/y"):
        assign_splits(["a/x", "b/y", "b/1"], patient_regex=r"^\d+")
    with pytest.raises(UsageError, match="no regular expression"):
        assign_splits(["a/x"], patient_regex="(")


def test_csv_matches_names_and_replaces_labels(tmp_path):
    path = write(
        tmp_path / "patients.csv",
        "\ufeffphotograph,patient,label,split",
        "1_L.JPG,one,,train",
        "1_R,one,sick,",
        "b/2.png,two,,val",
        "b\\3,three,,test",
    )
    assigned = assign_splits(["a/1_L", "a/1_R", "b/2", "b/3"], patients=path)
    assert [tuple(getattr(a, n) for n in ("photograph", "patient", "label", "split"))
            for a in assigned.values()] == [
        ("a/1_L", "one", "a", "train"),
        ("sick/1_R", "one", "sick", "train"),  # its patient is in train
        ("b/2", "two", "b", "val"),
        ("b/3", "three", "b", "test"),
    ]  # fmt: skip


def test_csv_without_splits_hashes(tmp_path):
    lines = [f"{id},{id.split('/')[1][:4]}" for id in MANY]
    path = write(tmp_path / "patients.csv", "photograph,patient", *lines)
    assigned = assign_splits(MANY, patients=path, val=0.2, test=0.2)
    assert all(a.split == hash_split(a.patient, 0.2, 0.2) for a in assigned.values())


def test_same_file_names_are_told_apart_by_folder_or_label(tmp_path):
    path = write(tmp_path / "p.csv", "photograph,patient,label", "1,x,a", "1,y,b")
    assigned = assign_splits(["a/1", "b/1"], patients=path, val=0, test=0)
    assert assigned["b/1"].patient == "y"
    path = write(tmp_path / "p.csv", "photograph,patient", "1,x", "a/1,y")
    with pytest.raises(DataError, match=r"line 2: '1' may be a/1, b/1; write folder/name"):
        assign_splits(["a/1", "b/1"], patients=path, val=0, test=0)


def test_csv_lacking_photographs_names_them_all_at_once(tmp_path):
    path = write(tmp_path / "p.csv", "photograph,patient", "1,x", "9,x", "8,x")
    reported = []
    with pytest.raises(DataError, match=r"lacks 2 of 3 photographs: a/2, a/3"):
        assign_splits(["a/1", "a/2", "a/3"], patients=path, report=reported.append)
    assert reported == [f"{path}: 2 rows match no photograph: 9, 8"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["photograph,eye", "1,x"], r"lacks the column 'patient'"),
        (["photograph,patient", "1,"], r"line 2: no patient"),
        (["photograph,patient", "1,x", "1.png,x"], r"line 3: a second row for 'a/1'"),
        (
            ["photograph,patient,split", "1,x,training", "2,y,"],
            r"'training', expected one of train",
        ),
        (["photograph,patient,split", "1,x,train", "2,x,test"], r"'x' is in train .* and in test"),
        (["photograph,patient,label", "1,x,../up", "2,y,"], r"no name of a folder"),
    ],
)
def test_csv_that_contradicts_itself_is_refused(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        assign_splits(["a/1", "a/2"], patients=write(tmp_path / "p.csv", *lines), val=0, test=0)


def test_csv_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        assign_splits(["a/1"], patients=tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("photograph,patient\nä,b".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        assign_splits(["a/1"], patients=tmp_path / "latin.csv")


def test_empty_splits_are_refused_unless_wanted(tmp_path):
    with pytest.raises(DataError, match=r"split val is empty: .* --val 0"):
        assign_splits(["a/1"], val=0.01, test=0)
    path = write(tmp_path / "p.csv", "photograph,patient,split", "1,x,train", "2,y,test")
    with pytest.raises(DataError, match="split val is empty"):
        assign_splits(["a/1", "a/2"], patients=path)
    assigned = assign_splits(["a/1", "a/2"], patients=path, val=0)
    assert [a.split for a in assigned.values()] == ["train", "test"]
    with pytest.raises(DataError, match="split train is empty"):
        assign_splits(["a/2"], patients=path, val=0)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (0, 1)])
def test_shares_out_of_range_are_refused(val, test):
    with pytest.raises(UsageError, match="expected shares"):
        assign_splits(["a/1"], val=val, test=test)


def test_no_word_on_patients_can_be_refused():
    with pytest.raises(UsageError, match=r"--patient_regex '.*--patients_unknown"):
        assign_splits(["a/1"], photograph_is_patient=False)
    with pytest.raises(UsageError, match="choose one"):
        assign_splits(["a/1"], patients="p.csv", patient_regex="x")
