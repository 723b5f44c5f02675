"""Dataset builds: stored bytes, rejected tiles, and no partial results."""

import csv
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from tensorflow_datasets.proto import tf_example_pb2

from vae.data import manifest, pipeline
from vae.data.errors import DataError, UsageError
from vae.data.fundus_tiles.build import build
from vae.data.fundus_tiles.collect import collect
from vae.data.fundus_tiles.encoded import prepare
from vae.data.images import decode_image, encode_image
from vae.data.synthetic import fundus_photograph

ROOT = Path(__file__).parents[2]
# Hides tensorflow. tfds checks `"tensorflow" in sys.modules`, so an entry None would not do.
WITHOUT_TENSORFLOW = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *args: (
    None if name.split(".")[0] == "tensorflow" else find(name, *args)
)
"""

# Contents of a data directory after a build.
LEFT = {".fundus-vae.json", "fundus_tiles", "rejected.csv"}


def quietly(line: str) -> None:
    """Ignores the progress messages of a build."""


def _picture(seed: int = 0, side: int = 32) -> np.ndarray:
    small = np.random.default_rng(seed).integers(30, 220, (side // 8, side // 8, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def _encode(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _tree(root: Path, photographs: int = 10, each: int = 5, suffix: str = ".png") -> Path:
    """Writes root/<label>/<photograph>/<tile> with photographs of two eyes per patient."""
    for photograph in range(photographs):
        folder = root / "hrf" / f"p{photograph // 2}_{'LR'[photograph % 2]}"
        folder.mkdir(parents=True)
        for number in range(each):
            image = _picture(photograph * 100 + number)
            (folder / f"{number}{suffix}").write_bytes(encode_image(image, suffix))
    return root


def _examples(data_dir: Path) -> dict[str, dict[str, list]]:
    """Returns the features of all examples by tile id."""
    dataset = pipeline.open_dataset(data_dir)
    found = {}
    for split, count in dataset.counts.items():
        for number in range(count):
            example = tf_example_pb2.Example.FromString(dataset.source(split)[number])
            values = {
                name: getattr(feature, feature.WhichOneof("kind")).value[0]
                for name, feature in example.features.feature.items()
            }
            found[values["tile_id"].decode()] = values | {"split": split}
    return found


def _left(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# --- Bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoded",
    [
        _encode(_picture(), "JPEG", quality=95),
        _encode(_picture(), "JPEG", quality=80, subsampling=2, progressive=True),
        _encode(_picture(), "JPEG", restart_marker_blocks=2),
        encode_image(_picture(), ".jpg"),
        _encode(_picture(), "PNG"),
        encode_image(_picture(), ".png"),
    ],
    ids=["jpeg", "progressive", "restarts", "opencv-jpeg", "png", "opencv-png"],
)
def test_plain_files_are_kept_bit_for_bit(encoded):
    kept = prepare(encoded)
    assert kept.data == encoded
    assert (kept.height, kept.width) == (32, 32)


def _with_exif(orientation: int = 1) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "SECRET camera"
    return {"exif": exif.tobytes()}


def _png_text() -> dict:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "SECRET name")
    info.add_itxt("Comment", "SECRET name", zip=True)
    return {"pnginfo": info}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", _with_exif()),
        ("JPEG", {"comment": b"SECRET"}),
        ("JPEG", {"xmp": b"<x:xmpmeta>SECRET</x:xmpmeta>"}),
        ("PNG", _png_text()),
    ],
    ids=["exif", "comment", "xmp", "png-text"],
)
def test_metadata_is_removed_without_reencoding(kind, options):
    encoded, plain = _encode(_picture(), kind, **options), _encode(_picture(), kind)
    kept = prepare(encoded).data
    assert kept == plain
    assert b"SECRET" in encoded or kind == "PNG"


def test_bytes_after_the_end_are_removed():
    encoded = _encode(_picture(), "JPEG")
    assert prepare(encoded + b"SECRET").data == encoded


def _other_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", _with_exif(6)),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "RGB", _with_exif(6)),
        ("PNG", "RGB", {"transparency": (1, 2, 3)}),
        ("PNG", "I;16", {}),
        ("TIFF", "RGB", {}),
        ("BMP", "RGB", {}),
        ("JPEG", "RGB", {"icc_profile": _other_profile()}),
        ("PNG", "RGB", {"icc_profile": _other_profile()}),
    ],
)
def test_other_formats_become_png_with_the_displayed_colours(kind, mode, options):
    picture = _picture(side=40)[:32]
    if mode == "I;16":
        picture = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(picture).convert(mode)
    encoded = _encode(picture, kind, **options)
    kept = prepare(encoded)
    assert kept.data.startswith(b"\x89PNG")
    seen = decode_image(encoded, "tile")
    assert np.array_equal(decode_image(kept.data, "tile"), seen)
    assert (kept.height, kept.width) == seen.shape[:2]
    assert prepare(kept.data).data == kept.data  # The PNG has no metadata.
    assert b"SECRET" not in kept.data


def _damaged() -> dict[str, bytes]:
    jpeg, png = (_encode(_picture(side=128), kind) for kind in ("JPEG", "PNG"))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    return {
        "empty": b"",
        "text": b"not an image at all",
        "jpeg-header-only": jpeg[:20],
        "jpeg-half": jpeg[: len(jpeg) // 2],
        "jpeg-without-end": jpeg[:-2],
        "jpeg-filled-with-zeros": jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2),
        "jpeg-zeros-in-segments": jpeg[:100] + bytes(100) + jpeg[200:],
        "png-half": png[: len(png) // 2],
        "png-without-end": png[:-12],
        "png-flipped": bytes(flipped),
        "tiff-half": _encode(_picture(), "TIFF")[:900],
    }


@pytest.mark.parametrize("name", _damaged())
def test_damage_is_reported(name):
    with pytest.raises(DataError):
        prepare(_damaged()[name])


def _overwrite(with_: Callable[[int], bytes]) -> Callable:
    return lambda jpeg, at, count: jpeg[:at] + with_(count) + jpeg[at + count :]


def _flip_bit(jpeg: bytes, at: int, count: int) -> bytes:
    return jpeg[:at] + bytes([jpeg[at] ^ 1 << at % 8]) + jpeg[at + 1 :]


# Damage inside the coded pixels, its length, and the share of it that must be detected.
JPEG_DAMAGE = {
    "cut short, end marker and all": (lambda jpeg, at, count: jpeg[:at] + b"\xff\xd9", 0, 1.0),
    "512 bytes lost": (lambda jpeg, at, count: jpeg[:at] + jpeg[at + count :], 512, 0.95),
    "512 bytes zeroed": (_overwrite(bytes), 512, 0.95),
    "512 bytes of something else": (_overwrite(np.random.default_rng(0).bytes), 512, 0.9),
    "16 bytes of 0xff": (_overwrite(lambda count: b"\xff" * count), 16, 0.9),
    "16 bytes of something else": (_overwrite(np.random.default_rng(1).bytes), 16, 0.25),
    "one byte lost": (lambda jpeg, at, count: jpeg[:at] + jpeg[at + 1 :], 1, 0.05),
    "one bit flipped": (
        _flip_bit,
        1,
        0.05,
    ),  # The result is mostly another valid image, which cannot be detected.
}


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "progressive", "grey"])
@pytest.mark.parametrize("damage", JPEG_DAMAGE)
def test_damage_inside_a_jpeg_is_reported(damage, kind, capfd):
    spoil, length, share = JPEG_DAMAGE[damage]
    picture = Image.fromarray(fundus_photograph(0, 512)[128:384, 128:384])
    picture = picture.convert("L") if kind == "grey" else picture
    jpeg = _encode(
        picture,
        "JPEG",
        quality=90,
        progressive=kind == "progressive",
        subsampling="4:4:4" if kind == "4:4:4" else "4:2:0",
    )
    found, trials = 0, 60
    for at in np.linspace(len(jpeg) // 3, len(jpeg) - 600, trials).astype(int):
        try:
            prepare(spoil(jpeg, int(at), length))
        except DataError:
            found += 1
    assert found >= share * trials
    assert not capfd.readouterr().err  # Libraries print nothing into the progress display.


# --- The dataset ---------------------------------------------------------------------------------


def test_manifest_is_carried_over(tmp_path):
    rows = []
    for number, split in enumerate(["train", "train", "val", "test"]):
        row = manifest.TileRow(
            f"fives/é{number}/t_{number}.jpg", f"fives/é{number}", f"anna{number}", "fives", split,
            number, 7, 0.5, 300, 400, 150.5, 151.25, 140.0, 12.0, 280.0, 10.5, 290.5, 0.97,
        )  # fmt: skip
        rows.append(row)
        (tmp_path / "t" / row.tile).parent.mkdir(parents=True)
        (tmp_path / "t" / row.tile).write_bytes(encode_image(_picture(number), ".jpg"))
    manifest.write_manifest(tmp_path / "t" / "manifest.csv", rows)
    photographs = [
        manifest.PhotographRow(
            r.photograph, r.patient, "fives", r.split, "/elsewhere/x.png", 300, 400, 0.5,
            150.5, 151.25, 140.0, 12.0, 280.0, 10.5, 290.5, 0.002,
        )
        for r in rows
    ]  # fmt: skip
    manifest.write_photographs(tmp_path / "t" / "photographs.csv", photographs)
    report = build(tmp_path / "t", tmp_path / "d", report=quietly)
    assert report.counts == {"train": 2, "val": 1, "test": 1}
    assert report.patients_known
    assert pipeline.open_dataset(tmp_path / "d").photographs() == photographs
    examples = _examples(tmp_path / "d")
    for number, row in enumerate(rows):
        example = examples.pop(row.tile_id)
        assert example.pop("image") == (tmp_path / "t" / row.tile).read_bytes()
        assert example.pop("tile_id").decode() == row.tile_id
        for key, value in example.items():
            value = value.decode() if isinstance(value, bytes) else value
            assert value == getattr(row, key), key
        assert example["y"] == number
    assert not examples


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_the_same_tiles_give_the_same_dataset(tmp_path, file_format):
    """This holds across processes, although protobuf's order of features differs between them."""
    tree = _tree(tmp_path / "t")
    build(tree, tmp_path / "d", patients_unknown=True, file_format=file_format, report=quietly)
    dataset = pipeline.open_dataset(tmp_path / "d")
    for split, count in dataset.counts.items():
        for number in range(count):
            record = dataset.source(split)[number]
            example = tf_example_pb2.Example.FromString(record)
            assert record == example.SerializeToString(deterministic=True)


def test_tree_with_a_patients_file(tmp_path):
    tree = _tree(tmp_path / "t")
    folders = sorted({p.parent for p in tree.rglob("*.*")})
    splits = ["test", "val"] + ["train"] * (len(folders) - 2)
    csv_file = tmp_path / "patients.csv"
    rows = [
        f"{f.parent.name}/{f.name},eye {i},{s}"
        for i, (f, s) in enumerate(zip(folders, splits, strict=True))
    ]
    csv_file.write_text("\n".join(["photograph,patient,split", *rows]))
    report = build(tree, tmp_path / "d", patients=csv_file, report=quietly)
    assert report.patients_known
    examples = _examples(tmp_path / "d").values()
    found = {(e["photograph"].decode(), e["patient"].decode(), e["split"]) for e in examples}
    assert found == {tuple(row.split(",")) for row in rows}


def test_patients_of_a_manifest_cannot_be_given_again(tiny_tiles, tmp_path):
    with pytest.raises(UsageError, match="says already whose the tiles are"):
        build(tiny_tiles, tmp_path / "d", patient_regex="(p)", report=quietly)


def test_tree_without_manifest(tmp_path):
    _tree(tmp_path / "t")
    report = build(
        tmp_path / "t", tmp_path / "d", patient_regex="/([^_]+)_", val=0.3, test=0.3, report=quietly
    )
    assert sum(report.counts.values()) == 50
    examples = _examples(tmp_path / "d")
    assert examples["hrf/p3_L/2"]["photograph"] == b"hrf/p3_L"
    assert examples["hrf/p3_L/2"]["label"] == b"hrf"
    assert examples["hrf/p3_L/2"]["fov_radius"] == examples["hrf/p3_L/2"]["y"] == -1
    splits = {}
    for example in examples.values():
        splits.setdefault(example["patient"], set()).add(example["split"])
    assert len(splits) == 5
    assert all(len(split) == 1 for split in splits.values())
    assert report.patients_known


def test_photographs_of_a_deep_tree_are_the_paths_of_their_folders(tmp_path):
    root = tmp_path / "t"
    folders = ["siteA/P1/OD", "siteB/P1/OD", "siteB/P2/OD", "P3"]
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        (root / folder / "0.png").write_bytes(encode_image(_picture(number), ".png"))
    build(root, tmp_path / "d", patient_regex=r"^(.*P\d)", val=0.3, test=0.3, report=quietly)
    found = {
        id: tuple(example[name].decode() for name in ("photograph", "patient", "label"))
        for id, example in _examples(tmp_path / "d").items()
    }
    assert found == {
        "siteA/P1/OD/0": ("siteA/P1/OD", "siteA/P1", "P1"),
        "siteB/P1/OD/0": ("siteB/P1/OD", "siteB/P1", "P1"),
        "siteB/P2/OD/0": ("siteB/P2/OD", "siteB/P2", "P2"),
        "P3/0": ("t/P3", "P3", "t"),
    }
    (root / "t" / "P3").mkdir(parents=True)
    (root / "t" / "P3" / "1.png").write_bytes(encode_image(_picture(9), ".png"))
    with pytest.raises(DataError, match=r"'P3' and 't/P3' would be of one photograph 't/P3'"):
        build(root, tmp_path / "e", patients_unknown=True, report=quietly)


def test_names_are_stored_with_their_accents_composed(tmp_path):
    label = unicodedata.normalize("NFD", "é")
    for number in range(3):
        folder = tmp_path / "t" / label / f"{label}{number}_L"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(encode_image(_picture(number), ".png"))
    build(tmp_path / "t", tmp_path / "d", patient_regex="/([^_]+)_", report=quietly)
    examples = _examples(tmp_path / "d")
    # The id of a tile is its path as stored on disk.
    assert set(examples) == {f"{label}/{label}{number}_L/0" for number in range(3)}
    assert {e["patient"].decode() for e in examples.values()} == {"é0", "é1", "é2"}
    assert {e["label"].decode() for e in examples.values()} == {"é"}


def test_unknown_patients_are_refused_or_recorded(tmp_path):
    _tree(tmp_path / "t")
    options = {"val": 0.3, "test": 0.3, "report": quietly}
    with pytest.raises(UsageError, match=r"--patient_regex '.*--patients_unknown"):
        build(tmp_path / "t", tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()
    report = build(tmp_path / "t", tmp_path / "d", patients_unknown=True, **options)
    assert not report.patients_known
    assert not pipeline.open_dataset(tmp_path / "d").patients_known


def test_shards_have_the_requested_size_and_are_shuffled(tmp_path):
    _tree(tmp_path / "t", each=8)
    total = sum(path.stat().st_size for path in (tmp_path / "t").rglob("*.png"))
    build(
        tmp_path / "t", tmp_path / "d", patients_unknown=True, val=0, test=0,
        shard_bytes=total // 4, report=quietly,
    )  # fmt: skip
    ((files),) = pipeline.open_dataset(tmp_path / "d").shards.values()
    assert [count for _, count in files] == [20] * 4
    source = pipeline.open_dataset(tmp_path / "d").source("train")
    first = {source[n].split(b"hrf/")[1][:4] for n in range(20)}
    assert len(first) > 4


def _spoil(tree: Path, count: int) -> list[str]:
    spoiled = sorted(tree.rglob("*.png"))[:count]
    for path in spoiled:
        path.write_bytes(path.read_bytes()[:-20])
    return [path.relative_to(tree).as_posix() for path in spoiled]


def _rejected(data_dir: Path) -> list[dict]:
    with open(data_dir / "rejected.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_few_damaged_tiles_are_listed_and_left_out(tmp_path):
    spoiled = _spoil(_tree(tmp_path / "t"), 2)
    report = build(
        tmp_path / "t", tmp_path / "d", patients_unknown=True, max_rejected=0.04, report=quietly
    )
    assert [tile for tile, _ in report.rejected] == spoiled
    assert [row["tile"] for row in _rejected(tmp_path / "d")] == spoiled
    assert all("truncated" in row["reason"] for row in _rejected(tmp_path / "d"))
    assert sum(report.counts.values()) == 48
    assert not set(_examples(tmp_path / "d")) & {tile[:-4] for tile in spoiled}


def test_many_damaged_tiles_are_refused(tmp_path):
    spoiled = _spoil(_tree(tmp_path / "t"), 3)
    with pytest.raises(DataError, match=r"3 of 50 tiles .*--max_rejected 0\.001 .*truncated"):
        build(tmp_path / "t", tmp_path / "d", patients_unknown=True, report=quietly)
    assert _left(tmp_path / "d") == [".fundus-vae.json", "rejected.csv"]
    assert [row["tile"] for row in _rejected(tmp_path / "d")] == spoiled


def test_missing_and_unlisted_tiles_are_reported(tmp_path):
    tree = _tree(tmp_path / "t")
    paths = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.png"))
    rows = [
        manifest.TileRow(
            path, "hrf/a", "a", "hrf", "train", *(1,) * 2, 1.0, 9, 9, *(-1.0,) * 7, 1.0
        )
        for path in [*paths[3:], "hrf/gone.png"]
    ]
    manifest.write_manifest(tree / "manifest.csv", rows)
    (tree / "overlays" / "hrf").mkdir(parents=True)  # written by make-tiles
    (tree / "overlays" / "hrf" / "a.png").write_bytes((tree / paths[0]).read_bytes())
    said = []
    report = build(tree, tmp_path / "d", max_rejected=0.03, report=said.append)
    assert report.rejected == [("hrf/gone.png", "No such file or directory")]
    assert report.unlisted == paths[:3]
    assert any("3 images" in line and paths[0] in line for line in said)
    assert report.counts == {"train": 47}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such directory"),
        (lambda root: root.mkdir(), "no tiles"),
        (lambda root: _tree(root, 1, 1).joinpath("hrf/p0_L/0.jpg").touch(), "would be one tile"),
    ],
    ids=["absent", "empty", "same-id"],
)
def test_unusable_trees_are_refused(tmp_path, make, message):
    make(tmp_path / "t")
    with pytest.raises(DataError, match=message):
        build(tmp_path / "t", tmp_path / "d", patients_unknown=True, val=0, test=0, report=quietly)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("options", [{"file_format": "zip"}, {"max_rejected": 1.5}])
def test_bad_options_are_refused(tmp_path, options):
    with pytest.raises(UsageError):
        build(_tree(tmp_path / "t", 1, 1), tmp_path / "d", report=quietly, **options)


def test_list_of_tiles_does_not_depend_on_the_order_on_disk(tmp_path):
    _tree(tmp_path / "a")
    _tree(tmp_path / "b")
    for path in list((tmp_path / "b").rglob("*.png"))[
        :10
    ]:  # Written last, so the disk lists it at another position.
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    first, second = (collect(tmp_path / name, patients_unknown=True) for name in "ab")
    assert first.fingerprint() == second.fingerprint()
    for split, numbers in first.order().items():
        ordered = [first.paths[n] for n in numbers]
        assert ordered == [second.paths[n] for n in second.order()[split]]
        assert ordered != sorted(ordered)


# --- Repeated, aborted and killed builds ---------------------------------------------------------


def test_building_again_accepts_the_same_and_refuses_other_tiles(tmp_path):
    options = {"patients_unknown": True, "val": 0.3, "test": 0.3}
    _tree(tmp_path / "t")
    first = build(tmp_path / "t", tmp_path / "d", report=quietly, **options)
    fingerprint = pipeline.open_dataset(tmp_path / "d").fingerprint
    said = []
    again = build(tmp_path / "t", tmp_path / "d", report=said.append, **options)
    assert (again.counts, again.seconds) == (first.counts, 0)
    assert "there already" in said[0]
    with pytest.raises(UsageError, match="tfrecord files; --overwrite"):
        build(tmp_path / "t", tmp_path / "d", file_format="array_record", report=quietly, **options)

    (tmp_path / "t" / "hrf" / "p0_L" / "0.png").unlink()
    with pytest.raises(UsageError, match="other tiles; --overwrite"):
        build(tmp_path / "t", tmp_path / "d", report=quietly, **options)
    assert pipeline.open_dataset(tmp_path / "d").fingerprint == fingerprint
    build(tmp_path / "t", tmp_path / "d", overwrite=True, report=quietly, **options)
    assert sum(pipeline.open_dataset(tmp_path / "d").counts.values()) == 49
    assert {path.name for path in (tmp_path / "d").iterdir()} == LEFT


def test_second_build_into_one_folder_is_refused(tmp_path):
    """Two concurrent builds into one folder: the second is refused."""
    _tree(tmp_path / "t")
    program = (
        "import time, vae.data.fundus_tiles.shards as shards\n"
        "from vae.data.fundus_tiles.build import build\n"
        "shards.Shard._read = lambda self, number: time.sleep(60)\n"
        f"build({str(tmp_path / 't')!r}, {str(tmp_path / 'd')!r}, patients_unknown=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        while process.poll() is None and not list(tmp_path.glob("d/.building-*/*/*")):
            time.sleep(0.05)
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on host .*build"):
            build(tmp_path / "t", tmp_path / "d", patients_unknown=True, report=quietly)
    finally:
        process.kill()
        process.wait()
    build(tmp_path / "t", tmp_path / "d", patients_unknown=True, report=quietly)


def test_failed_overwrite_keeps_the_old_dataset(tmp_path):
    _tree(tmp_path / "t")
    build(tmp_path / "t", tmp_path / "d", patients_unknown=True, report=quietly)
    fingerprint = pipeline.open_dataset(tmp_path / "d").fingerprint
    _spoil(tmp_path / "t", 5)
    with pytest.raises(DataError):
        build(tmp_path / "t", tmp_path / "d", patients_unknown=True, overwrite=True, report=quietly)
    assert pipeline.open_dataset(tmp_path / "d").fingerprint == fingerprint


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, number):
        raise KeyboardInterrupt

    monkeypatch.setattr("vae.data.fundus_tiles.shards.Shard._read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(_tree(tmp_path / "t"), tmp_path / "new" / "d", patients_unknown=True, report=quietly)
    assert not (tmp_path / "new").exists()


def test_next_build_clears_up_after_a_killed_one(tmp_path):
    tree = _tree(tmp_path / "t")
    program = (
        "import time, vae.data.fundus_tiles.shards as shards\n"
        "from vae.data.fundus_tiles.build import build\n"
        "shards.Shard._read = lambda self, number: time.sleep(60)\n"
        f"build({str(tree)!r}, {str(tmp_path / 'd')!r}, patients_unknown=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while process.poll() is None and not list(tmp_path.glob("d/.building-*/*/*")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="no dataset here"):
        pipeline.open_dataset(tmp_path / "d")
    build(tree, tmp_path / "d", patients_unknown=True, report=quietly)
    assert {path.name for path in (tmp_path / "d").iterdir()} == LEFT


def test_too_little_disk_space_is_reported_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="are free"):
        build(_tree(tmp_path / "t"), tmp_path / "d", patients_unknown=True, report=quietly)
    assert not (tmp_path / "d").exists()


def test_full_disk_leaves_nothing(tmp_path):
    tree = _tree(tmp_path / "t")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large"):
            build(tree, tmp_path / "d", patients_unknown=True, report=quietly)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "d").exists()


# --- tfds and tensorflow -------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_builds_without_tensorflow(tmp_path, file_format):
    tree = _tree(tmp_path / "t")
    program = (
        f"{WITHOUT_TENSORFLOW}"
        "from vae.data.fundus_tiles.build import build\n"
        f"build({str(tree)!r}, {str(tmp_path / 'd')!r}, file_format={file_format!r}, "
        "patients_unknown=True)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert len(_examples(tmp_path / "d")) == 50


def test_tfds_builds_and_reads_it_too(tmp_path):
    import tensorflow_datasets as tfds

    from vae.data.fundus_tiles.builder import FundusTiles

    tree = _tree(tmp_path / "t")
    rows = [
        manifest.TileRow(
            path.relative_to(tree).as_posix(), "hrf/a", "a", "hrf", "train", 1, 1, 1.0, 9, 9,
            *(-1.0,) * 7, 1.0,
        )
        for path in sorted(tree.rglob("*.png"))
    ]  # fmt: skip
    manifest.write_manifest(tree / "manifest.csv", rows)
    # The builder that `tfds build` makes.
    builder = tfds.builder(FundusTiles.name, data_dir=tmp_path / "d", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tree))
    read = tfds.builder_from_directory(builder.data_dir).as_data_source("train")
    assert len(read) == 50
    for example in (read[0], read[49]):
        seen = decode_image((tree / f"{example['tile_id'].decode()}.png").read_bytes(), "tile")
        assert np.array_equal(example["image"], seen)
    assert pipeline.open_dataset(tmp_path / "d").counts == {"train": 50}
    info = json.loads((Path(builder.data_dir) / "metadata.json").read_text())
    assert info["rejected"] == 0

    # A flipped byte is found, or changes nothing (ArrayRecord pads its blocks).
    (shard,) = Path(builder.data_dir).glob("*.array_record-*")
    whole = shard.read_bytes()
    expected = list(pipeline.open_dataset(tmp_path / "d").source("train").read_many(range(50)))
    for position in np.random.default_rng(0).integers(len(whole), size=30):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        shard.write_bytes(flipped)
        for kept in (True, False):  # the index of the build
            if not kept:
                shutil.rmtree(shard.parent / "index", ignore_errors=True)
            try:
                source = pipeline.open_dataset(tmp_path / "d").source("train")
                assert list(source.read_many(range(50))) == expected
            except DataError:
                pass


def test_importing_is_free_of_tensorflow():
    program = (
        "import sys, vae.data.pipeline\n"
        "from vae.data.fundus_tiles import build, builder\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
