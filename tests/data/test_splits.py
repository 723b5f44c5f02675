import collections
import dataclasses
import hashlib
import unicodedata

import pytest

from vae.data.errors import DataError, UsageError
from vae.data.splits import assign_splits

MANY = [f"{label}/p{i:03d}_{eye}" for label in "ab" for i in range(100) for eye in "LR"]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def hash_split(patient, val, test):
    """The split of a patient, which must not change between versions."""
    digest = hashlib.blake2b(patient.encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    return "test" if draw < test else "val" if draw < test + val else "train"


def test_photographs_are_their_own_patients():
    assigned = assign_splits(MANY)
    assert list(assigned) == MANY
    assert all(a.patient == a.photograph == id for id, a in assigned.items())
    assert {a.label for a in assigned.values()} == {"a", "b"}
    counts = collections.Counter(a.split for a in assigned.values())
    # Five standard deviations of 400 draws with probability 0.1 are 30.
    assert 10 < counts["val"] < 70
    assert 10 < counts["test"] < 70


def test_no_two_splits_share_a_patient():
    assigned = assign_splits(MANY, patient_regex=r"(p\d+)_", val=0.3, test=0.3)
    splits = collections.defaultdict(set)
    for a in assigned.values():
        splits[a.patient].add(a.split)
    assert len(splits) == 100
    assert all(len(found) == 1 for found in splits.values())


def test_adding_photographs_keeps_the_splits_of_others():
    before = assign_splits(MANY[:200], val=0.2, test=0.2)
    after = assign_splits(["0/new", *MANY, "z/new"], val=0.2, test=0.2)
    assert all(after[id] == a for id, a in before.items())


def test_hash_is_of_the_composed_name():
    composed = [f"a/Müller{i}" for i in range(100)]
    decomposed = [unicodedata.normalize("NFD", id) for id in composed]
    assert decomposed != composed
    found = ([a.split for a in assign_splits(ids, val=0.3, test=0.3).values()]
             for ids in (composed, decomposed))  # fmt: skip
    expected = [hash_split(id, 0.3, 0.3) for id in composed]
    assert list(found) == [expected, expected]


def test_share_of_val_moves_no_photograph_of_test():
    few, many = (assign_splits(MANY, val=val, test=0.2) for val in (0, 0.5))
    tested = [[id for id, a in found.items() if a.split == "test"] for found in (few, many)]
    assert tested[0] == tested[1]


def test_regex_takes_the_first_group_or_the_match():
    ids = ["a/01_L", "a/01_R", "a/02_L"]
    options = {"val": 0, "test": 0}
    grouped = assign_splits(ids, patient_regex=r"(\d+)_", **options)
    assert [a.patient for a in grouped.values()] == ["01", "01", "02"]
    matched = assign_splits(ids, patient_regex=r"\d+_", **options)
    assert [a.patient for a in matched.values()] == ["01_", "01_", "02_"]


def test_regex_is_searched_in_the_whole_path():
    ids = ["siteA/P1/OD", "siteA/P1/OS", "siteB/P1/OD"]
    options = {"val": 0, "test": 0}
    found = assign_splits(ids, patient_regex=r"^(site./P\d+)/", **options)
    assert [a.patient for a in found.values()] == ["siteA/P1", "siteA/P1", "siteB/P1"]
    assert {a.label for a in found.values()} == {"P1"}
    # The ids of files without a folder begin with the root's name, which is not searched.
    found = assign_splits(["P9/P1_L"], searched=["P1_L"], patient_regex=r"^(P\d)_", **options)
    assert found["P9/P1_L"].patient == "P1"


def test_regex_that_takes_folders_for_a_part_of_the_name_is_reported():
    reported = []
    assign_splits(
        ["sick/p1_L", "well/p1_R", "well/p2_L"],
        patient_regex="^([^_]+)_",
        val=0,
        test=0,
        report=reported.append,
    )
    (line,) = reported
    assert "sick/p1 and well/p1 count as different people" in line and "p2" not in line


def test_regex_must_match_all_and_be_one():
    with pytest.raises(
        DataError,
        match=r"no patient in 2 of 3 photographs: a/x, b/y; it is searched in the path .* 'a/x'",
    ):
        assign_splits(["a/x", "b/y", "1/1"], patient_regex=r"^\d+")
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
        ("a/1_R", "one", "sick", "train"),  # its patient is in train
        ("b/2", "two", "b", "val"),
        ("b/3", "three", "b", "test"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["siteB/P1/OD.jpg", "siteB\\P1\\OD", "./siteB/P1/OD.JPG", "siteB/P1/OD"]
)
def test_csv_matches_the_end_of_a_path(tmp_path, name):
    ids = ["siteA/P1/OD", "siteB/P1/OD", "siteB/P1/OS"]
    path = write(tmp_path / "p.csv", "photograph,patient", "siteA/P1/OD,x", f"{name},y", "OS,y")
    assigned = assign_splits(ids, patients=path, val=0, test=0)
    assert [a.patient for a in assigned.values()] == ["x", "y", "y"]
    assert list(assigned) == ids
    path = write(tmp_path / "p.csv", "photograph,patient", "P1/OD,x", "OS,y")
    with pytest.raises(DataError, match=r"line 2: 'P1/OD' may be siteA/P1/OD, siteB/P1/OD"):
        assign_splits(ids, patients=path)


def test_csv_prefers_a_whole_path_to_the_end_of_another(tmp_path):
    path = write(tmp_path / "p.csv", "photograph,patient", "b/c,x", "a/b/c,y", "c.png.jpg,z")
    assigned = assign_splits(["b/c", "a/b/c", "a/c.png"], patients=path, val=0, test=0)
    assert [a.patient for a in assigned.values()] == ["x", "y", "z"]


def test_csv_without_splits_hashes(tmp_path):
    lines = [f"{id},{id.split('/')[1][:4]}" for id in MANY]
    path = write(tmp_path / "patients.csv", "photograph,patient", *lines)
    assigned = assign_splits(MANY, patients=path, val=0.2, test=0.2)
    assert all(a.split == hash_split(a.patient, 0.2, 0.2) for a in assigned.values())


def test_equal_file_names_are_distinguished_by_folder_or_label(tmp_path):
    path = write(tmp_path / "p.csv", "photograph,patient,label", "1,x,a", "1,y,b")
    assigned = assign_splits(["a/1", "b/1"], patients=path, val=0, test=0)
    assert assigned["b/1"].patient == "y"
    path = write(tmp_path / "p.csv", "photograph,patient", "1,x", "a/1,y")
    with pytest.raises(DataError, match=r"line 2: '1' may be a/1, b/1; write its folder too"):
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


def test_every_requested_split_gets_a_patient():
    ids = [f"a/{number}" for number in range(3)]
    for shares in ((0.001, 0.001), (0.49, 0.49), (0.001, 0.9)):
        reported = []
        assigned = assign_splits(ids, val=shares[0], test=shares[1], report=reported.append)
        assert {a.split for a in assigned.values()} == {"train", "val", "test"}
        assert any("is moved there from" in line for line in reported)
    # The moved patients have the smallest hashes: a share that just includes them selects the same.
    many = [f"a/{number}" for number in range(30)]
    moved = assign_splits(many, val=1e-9, test=1e-9)
    (first,) = (id for id, a in moved.items() if a.split == "test")
    (second,) = (id for id, a in moved.items() if a.split == "val")
    share = next(n / 1e4 for n in range(1, 10_000) if hash_split(first, 0, n / 1e4) == "test")
    within = {id for id in many if hash_split(id, 0, share) == "test"}
    assert within == {first}
    share = next(n / 1e4 for n in range(1, 10_000) if hash_split(second, 0, n / 1e4) == "test")
    assert {id for id in many if hash_split(id, 0, share) == "test"} == {first, second}


def test_empty_splits_are_refused_unless_requested(tmp_path):
    with pytest.raises(DataError, match=r"split val is empty: .* --val 0"):
        assign_splits(["a/1"], val=0.01, test=0)
    with pytest.raises(DataError, match=r"none of 2 patients can be put into it"):
        assign_splits(["a/1", "a/2"])
    path = write(tmp_path / "p.csv", "photograph,patient,split", "1,x,train", "2,y,test")
    with pytest.raises(DataError, match="split val is empty"):
        assign_splits(["a/1", "a/2"], patients=path)
    assigned = assign_splits(["a/1", "a/2"], patients=path, val=0)
    assert [a.split for a in assigned.values()] == ["train", "test"]
    with pytest.raises(DataError, match="split train is empty"):
        assign_splits(["a/2"], patients=path, val=0)


def test_strata_are_split_by_the_shares():
    ids = [f"{label}/{i}" for label, n in (("many", 100), ("few", 20)) for i in range(n)]
    assigned = assign_splits(ids, val=0.1, test=0.2, stratify="label")
    counts = collections.Counter((a.label, a.split) for a in assigned.values())
    assert counts == {
        ("many", "train"): 70, ("many", "val"): 10, ("many", "test"): 20,
        ("few", "train"): 14, ("few", "val"): 2, ("few", "test"): 4,
    }  # fmt: skip
    # With many labels of two patients each, the shares hold over all labels together.
    pairs = [f"{label}/{eye}" for label in range(200) for eye in "ab"]
    counts = collections.Counter(
        a.split for a in assign_splits(pairs, val=0.1, test=0.2, stratify="label").values()
    )
    # Expected are 80 and 40 of 400, with standard deviations of about 7 and 6.
    assert abs(counts["test"] - 80) < 35 and abs(counts["val"] - 40) < 30
    with pytest.raises(UsageError, match="stratify 'camera': expected label"):
        assign_splits(ids, stratify="camera")


def test_strata_keep_patients_together_and_named_splits(tmp_path):
    ids = [f"{label}/p{i}_{eye}" for i in range(30) for label, eye in (("a", "L"), ("b", "R"))]
    lines = [f"{id},{id[2:-2]},{'val' if 'p7_' in id else ''}" for id in ids]
    path = write(tmp_path / "p.csv", "photograph,patient,split", *lines)
    assigned = assign_splits(ids, patients=path, val=0.2, test=0.2, stratify="label")
    splits = {(a.patient, a.split) for a in assigned.values()}
    assert len(splits) == 30 and ("p7", "val") in splits


def test_copies_are_one_patient_if_patients_are_unknown():
    copies = [["a/p001_L", "b/p050_R", "b/p099_L"], ["a/p002_L", "a/p002_R"]]
    reported = []
    assigned = assign_splits(MANY, copies=copies, val=0.4, test=0.3, report=reported.append)
    for group in copies:
        found = {(assigned[id].patient, assigned[id].split) for id in group}
        assert found == {(group[0], hash_split(group[0], 0.4, 0.3))}
    assert assigned["b/p050_R"].photograph == "b/p050_R"
    (line,) = reported
    assert line.startswith("3 photographs are copies of others")
    assert "a/p001_L = b/p050_R = b/p099_L, a/p002_L = a/p002_R" in line


def test_copies_of_different_patients_share_a_split():
    copies = [["a/p001_L", "a/p050_R"], ["b/p050_L", "b/p099_L"]]
    reported = []
    options = {"patient_regex": r"(p\d+)_", "val": 0.4, "test": 0.3}
    assigned = assign_splits(MANY, copies=copies, report=reported.append, **options)
    together = ("p001", "p050", "p099")
    assert {a.split for a in assigned.values() if a.patient in together} == {
        hash_split("p001", 0.4, 0.3)
    }
    assert {assigned[f"a/{patient}_L"].patient for patient in together} == set(together)
    assert reported[1].endswith("put into one split: p001 and p050 and p099")
    # All other patients keep their split.
    before = assign_splits(MANY, **options)
    assert all(assigned[id] == a for id, a in before.items() if a.patient not in together)


def test_copies_follow_a_named_split_and_refuse_two(tmp_path):
    header = "photograph,patient,split"
    ids, copies = ["a/1", "b/2", "b/3"], [["a/1", "b/2"]]
    path = write(tmp_path / "p.csv", header, "1,x,", "2,y,test", "3,z,train")
    assigned = assign_splits(ids, patients=path, val=0, copies=copies)
    assert [a.split for a in assigned.values()] == ["test", "test", "train"]
    path = write(tmp_path / "p.csv", header, "1,x,train", "2,y,test", "3,z,train")
    with pytest.raises(DataError, match=r"a/1 is in train and b/2 in test .* patients 'x', 'y'"):
        assign_splits(ids, patients=path, val=0, copies=copies)
    # Transitively: x and z share one photograph, z and y another.
    path = write(tmp_path / "p.csv", header, "1,x,train", "2,y,test", "3,z,", "4,z,")
    with pytest.raises(DataError, match=r"b/4 is in train and b/2 in test"):
        assign_splits([*ids, "b/4"], patients=path, val=0, copies=[["a/1", "b/3"], ["b/4", "b/2"]])


def test_composed_and_decomposed_accents_are_the_same_name(tmp_path):
    def form(kind, text):
        return unicodedata.normalize(kind, text)

    nfd = [form("NFD", f"é/Müller_{eye}") for eye in "LR"]
    rows = [form("NFC", "é/Müller_L,Jörg,Größe,train"), form("NFD", "é/Müller_R,Jörg,Größe,")]
    path = write(tmp_path / "p.csv", "photograph,patient,label,split", *rows)
    for ids in (nfd, [form("NFC", id) for id in nfd]):
        assigned = assign_splits(ids, patients=path, val=0, test=0)
        assert list(assigned) == ids
        assert [dataclasses.astuple(a) for a in assigned.values()] == [
            (f"é/Müller_{eye}", "Jörg", "Größe", "train") for eye in "LR"
        ]
    mixed = [nfd[0], form("NFC", nfd[1])]
    found = assign_splits(mixed, patient_regex=form("NFD", "(Müller)_"), val=0, test=0)
    assert {a.patient for a in found.values()} == {"Müller"}
    path = write(
        tmp_path / "p.csv",
        "photograph,patient,split",
        form("NFC", "Müller_L,Jörg,train"),
        form("NFD", "Müller_R,Jörg,test"),
    )
    with pytest.raises(DataError, match="patient 'Jörg' is in train .* and in test"):
        assign_splits(nfd, patients=path, val=0)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (0, 1)])
def test_shares_out_of_range_are_refused(val, test):
    with pytest.raises(UsageError, match="expected shares"):
        assign_splits(["a/1"], val=val, test=test)


def test_missing_patients_can_be_refused():
    with pytest.raises(UsageError, match=r"--patient_regex '.*--patients_unknown"):
        assign_splits(["a/1"], photograph_is_patient=False)
    with pytest.raises(UsageError, match="choose one"):
        assign_splits(["a/1"], patients="p.csv", patient_regex="x")
