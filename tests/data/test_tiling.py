import collections
import csv
import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vae.data import cutting, cutting_run
from vae.data.cutting import tile_origins
from vae.data.errors import DataError, UsageError
from vae.data.failures import Failure
from vae.data.finding import find_images
from vae.data.fov import FieldOfView, find_fov
from vae.data.fundus_tiles.collect import collect
from vae.data.images import read_image, write_image
from vae.data.manifest import read_manifest, read_photographs
from vae.data.synthetic import fundus_photograph, write_photographs
from vae.data.tiling import make_tiles

SIZE, TILE = 160, 48
FAST = {"tile": TILE, "stride": 32, "workers": 1, "progress": False}
SPLIT = {"patient_regex": r"(\w\d+)_", "val": 0.25, "test": 0.25}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Both eyes of eight patients in two folders; one name is not ASCII."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, patients=8, size=SIZE, labels=("gesund ü", "krank"))
    return root


@pytest.fixture(scope="module")
def tiles(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tiles"
    return out, make_tiles(tree, out, **SPLIT, **FAST)


def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "photographs")


def test_manifest_lists_every_tile(tiles):
    out, summary = tiles
    rows = list(read_manifest(out / "manifest.csv"))
    files = {path.relative_to(out).as_posix() for path in find_images(out).paths}
    assert {row.tile for row in rows} == files
    assert sum(summary.tiles.values()) == len(rows)
    assert collections.Counter((r.label, r.split) for r in rows) == summary.tiles
    assert {row.split for row in rows} == {"train", "val", "test"}
    assert all(r.tile == f"{r.photograph}/{r.tile.split('/')[2]}" for r in rows)
    assert all(r.tile.endswith(f"_y{r.y}_x{r.x}.png") for r in rows)
    assert not (out / "rejected.csv").exists()
    assert not summary.rejected


def test_tiles_have_the_pixels_inside_the_field_of_view(tree, tiles):
    out, _ = tiles
    photographs = {row.photograph: row for row in read_photographs(out / "photographs.csv")}
    assert len(photographs) == 16
    for row in read_manifest(out / "manifest.csv"):
        source = photographs[row.photograph]
        assert (source.fov, source.height, source.width) == (row.fov, SIZE, SIZE)
        tile = read_image(out / row.tile)
        inside = row.fov.mask(TILE, TILE, row.y, row.x)
        window = np.s_[row.y : row.y + TILE, row.x : row.x + TILE]
        np.testing.assert_array_equal(tile[inside], read_image(source.path)[window][inside])
        assert not tile[~inside].any()  # no pixel outside the field of view, not even a faint one
        assert row.fov_share == pytest.approx(inside.mean(), abs=1e-8)
        assert row.fov_share >= 0.9


def test_no_two_splits_share_a_patient(tiles):
    splits = collections.defaultdict(set)
    for row in read_manifest(tiles[0] / "manifest.csv"):
        splits[row.patient].add(row.split)
    assert len(splits) == 8
    assert all(len(found) == 1 for found in splits.values())


def test_origins_have_all_phases_and_stay_inside():
    fov = FieldOfView(500.0, 450.0, 520.0, 0.0, 899.0, 0.0, 999.0)
    inside = fov.mask(900, 1000)
    placed = tile_origins(inside, fov, tile=64, stride=20, min_fov=0.9, photograph="a/b")
    phases = {(y % 8, x % 8) for y, x, _ in placed}
    assert len(phases) == 64
    assert all(0 <= y <= 900 - 64 and 0 <= x <= 1000 - 64 for y, x, _ in placed)
    assert min(y for y, _, _ in placed) < 16
    assert max(y for y, _, _ in placed) > 900 - 64 - 16
    assert placed == tile_origins(inside, fov, tile=64, stride=20, min_fov=0.9, photograph="a/b")
    other = tile_origins(inside, fov, tile=64, stride=20, min_fov=0.9, photograph="a/c")
    assert placed != other


@pytest.mark.parametrize("side", [64, 65, 67, 71, 72])
def test_origins_in_photographs_hardly_larger_than_a_tile(side):
    fov = FieldOfView(32.0, 32.0, 60.0, 0.0, side - 1.0, 0.0, side - 1.0)
    for photograph in "abcdefgh":
        placed = tile_origins(fov.mask(side, 64), fov, tile=64, stride=32, photograph=photograph)
        assert len(placed) == 1
        assert 0 <= placed[0][0] <= side - 64
        assert placed[0][1] == 0


def test_workers_give_the_same_tiles(tree, tiles, tmp_path):
    make_tiles(tree, tmp_path / "tiles", **SPLIT, **{**FAST, "workers": 2})
    assert (tmp_path / "tiles/manifest.csv").read_bytes() == (
        tiles[0] / "manifest.csv"
    ).read_bytes()


def test_added_photographs_do_not_change_other_tiles(tree, tmp_path):
    root = copy(tree, tmp_path)
    make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    before = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    for name in ("a0_R.png", "p99_L.png"):
        write_image(root / "krank" / name, fundus_photograph(99, SIZE))
    summary = make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    after = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    assert summary.reused == 16
    assert set(before) < set(after)


def test_interrupted_runs_are_continued(tree, tiles, tmp_path, monkeypatch, capsys):
    calls = []

    def interrupted(job):
        calls.append(job)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return cutting.cut_photograph(job)

    monkeypatch.setattr(cutting_run, "cut_photograph", interrupted)
    options = {**SPLIT, **FAST}
    with pytest.raises(KeyboardInterrupt):
        make_tiles(tree, tmp_path / "tiles", **{**options, "progress": True})
    assert "interrupted: 3 of 16 photographs are finished" in capsys.readouterr().out
    assert not (tmp_path / "tiles/manifest.csv").exists()
    monkeypatch.undo()
    # A photograph with incomplete tiles is cut again, whatever exists of it.
    left = tmp_path / "tiles" / calls[3].photograph / "left over.png"
    left.parent.mkdir(parents=True)
    left.touch()
    summary = make_tiles(tree, tmp_path / "tiles", **options)
    assert summary.reused == 3
    assert not left.exists()
    assert (tmp_path / "tiles/manifest.csv").read_bytes() == (
        tiles[0] / "manifest.csv"
    ).read_bytes()


def test_changed_photographs_and_missing_tiles_are_cut_again(tree, tmp_path):
    root = copy(tree, tmp_path)
    make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    changed = find_images(root).paths[0]
    write_image(changed, fundus_photograph(77, SIZE))
    lost = tmp_path / "tiles" / list(read_manifest(tmp_path / "tiles/manifest.csv"))[-1].tile
    lost.unlink()
    summary = make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    assert summary.reused == 14
    assert lost.exists()


def test_other_options_into_the_same_folder_are_refused(tree, tiles):
    with pytest.raises(UsageError, match=r"begun with stride 32, now stride is 40"):
        make_tiles(tree, tiles[0], **SPLIT, **{**FAST, "stride": 40})
    with pytest.raises(UsageError, match=r"begun with val 0.25, now val is 0.3"):
        make_tiles(tree, tiles[0], **{**SPLIT, "val": 0.3}, **FAST)


def test_foreign_and_nested_folders_are_refused(tree, tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UsageError, match="was not made by make-tiles"):
        make_tiles(tree, tmp_path, **FAST)
    with pytest.raises(UsageError, match="neither may lie in the other"):
        make_tiles(tree, tree / "tiles", **FAST)


def test_no_photograph_is_scaled_beyond_the_limit(tree, tmp_path):
    with pytest.raises(DataError, match="all photographs were rejected"):
        make_tiles(tree, tmp_path / "out", **FAST | {"fov_width": 1_000_000})
    listed = (tmp_path / "out" / "rejected.csv").read_text()
    assert "pixels at fov_width 1000000; expected at most 100 megapixels" in listed
    assert "Traceback" not in listed


def test_fov_width_scales_every_field_of_view(tree, tmp_path):
    options = {**FAST, "tile": 32, "fov_width": 75}
    make_tiles(tree, tmp_path / "tiles", **SPLIT, **options)
    for row in read_photographs(tmp_path / "tiles/photographs.csv"):
        assert row.fov_radius == pytest.approx(37.5, abs=0.1)
        assert row.height == row.width == round(SIZE * row.scale)
        found = find_fov(read_image(row.path))
        assert row.scale == pytest.approx(75 / (2 * found.radius), rel=1e-4)
    for row in read_manifest(tmp_path / "tiles/manifest.csv"):
        inside = row.fov.mask(32, 32, row.y, row.x)
        assert not read_image(tmp_path / "tiles" / row.tile)[~inside].any()


def test_jpg_is_for_train_only(tree, tmp_path):
    make_tiles(tree, tmp_path / "tiles", file_format="jpg", **SPLIT, **FAST)
    rows = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    suffixes = {(row.split, row.tile.rsplit(".", 1)[1]) for row in rows}
    assert suffixes == {("train", "jpg"), ("val", "png"), ("test", "png")}


def test_exif_orientation_is_applied_and_exif_is_not_stored(tree, tmp_path):
    root = copy(tree, tmp_path)
    path = root / "krank" / "p01_R.png"
    upright = read_image(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate by 90 degrees
    exif[0x010E] = "DOE, JOHN"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    for row in read_manifest(tmp_path / "tiles/manifest.csv"):
        if row.photograph == "krank/p01_R":
            tile = read_image(tmp_path / "tiles" / row.tile)
            inside = row.fov.mask(TILE, TILE, row.y, row.x)
            window = np.s_[row.y : row.y + TILE, row.x : row.x + TILE]
            np.testing.assert_array_equal(tile[inside], upright[window][inside])
            assert b"DOE" not in (tmp_path / "tiles" / row.tile).read_bytes()


def test_bad_photographs_are_listed_and_the_others_finish(tree, tmp_path):
    root = copy(tree, tmp_path)
    good = (root / "krank" / "p01_R.png").read_bytes()
    bad = {
        "p20_empty.png": (b"", "is empty"),
        "p21_half.png": (good[: len(good) // 2], "cannot be decoded"),
        "p22_text.jpg": (b"hello", "is no image"),
        "p23_black.png": (np.zeros((SIZE, SIZE, 3), np.uint8), "no field of view"),
        "p24_small.png": (fundus_photograph(3, 40), "40 x 40 pixels, smaller than a tile of 48"),
        "p25_narrow.png": (np.zeros((SIZE, SIZE, 3), np.uint8), "no tile of 48 pixels"),
    }
    bad["p25_narrow.png"][0][50:98, 50:98] = fundus_photograph(4, 48)
    for name, (content, _) in bad.items():
        if isinstance(content, bytes):
            (root / "krank" / name).write_bytes(content)
        else:
            write_image(root / "krank" / name, content)
    summary = make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    with (tmp_path / "tiles/rejected.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["item"] for row in listed] == [f"krank/{name[:-4]}" for name in bad]
    for row, (name, (_, reason)) in zip(listed, bad.items(), strict=True):
        assert row["path"] == str(root / "krank" / name)
        assert reason in row["reason"]
    assert [Failure(*row.values()) for row in listed] == list(summary.rejected)
    assert "6 rejected" in str(summary)
    assert "tiles of 16 photographs (0 finished before)" in str(summary)
    assert len(read_photographs(tmp_path / "tiles/photographs.csv")) == 16
    # Once repaired, they are cut, and the list is removed.
    for name in bad:
        (root / "krank" / name).unlink()
    assert not make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST).rejected
    assert not (tmp_path / "tiles/rejected.csv").exists()


def test_a_split_whose_photographs_are_all_bad_is_refused(tree, tmp_path):
    root = copy(tree, tmp_path)
    (root / "krank" / "q.png").write_bytes(b"")
    rows = [f"{p.parent.name}/{p.stem},{p.stem},train" for p in find_images(root).paths[:-1]]
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(["photograph,patient,split", *rows, "q,q,test"]), "utf-8")
    with pytest.raises(DataError, match=r"no tiles in test: all photographs there were rejected"):
        make_tiles(root, tmp_path / "tiles", patients=table, val=0, **FAST)
    # The tiles of the other splits exist and are listed.
    listed = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    assert {row.split for row in listed} == {"train"} and len(rows) == len(
        {row.photograph for row in listed}
    )


def test_patients_file_gives_labels_and_splits(tree, tmp_path):
    splits = ["train", "val", "test"]
    paths = find_images(tree).paths
    rows = [
        f"{path.parent.name}/{path.name},{path.stem[:3]},neu {path.stem[-1]},"
        f"{splits[int(path.stem[1:3]) % 3]}"
        for path in paths
    ]
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(["photograph,patient,label,split", *rows]), "utf-8")
    make_tiles(tree, tmp_path / "tiles", patients=table, **FAST)
    for row in read_photographs(tmp_path / "tiles/photographs.csv"):
        assert row.label == f"neu {row.photograph[-1]}"
        # The photograph's id is still its path.
        assert row.photograph.split("/")[0] in ("gesund ü", "krank")
        assert row.split == splits[int(row.patient[1:]) % 3]
        assert row.path.endswith(f"{row.photograph.split('/')[1]}.png")


def test_each_photograph_as_its_own_patient_is_reported(tree, tmp_path, capsys):
    options = {**FAST, "progress": True, "val": 0.3, "test": 0.3}
    make_tiles(tree, tmp_path / "tiles", **options)
    output = capsys.readouterr().out
    assert "each of the 16 photographs counts as its own patient" in output
    assert "--patient_regex '" in output
    assert "16 photographs\nTo cut: about" in output
    rows = list(read_manifest(tmp_path / "tiles/manifest.csv"))
    assert all(row.patient == row.photograph for row in rows)
    make_tiles(tree, tmp_path / "tiles", patients_unknown=True, **options)
    assert "own patient" not in capsys.readouterr().out


def test_colliding_names_are_refused(tree, tmp_path):
    root = copy(tree, tmp_path)
    Image.open(root / "krank/p01_L.png").save(root / "krank/p01_L.tif")
    with pytest.raises(DataError, match=r"called 'krank/p01_L'.*p01_L\.png and .*p01_L\.tif"):
        make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    (root / "krank/p01_L.tif").rename(root / "krank/p77_L.tif")  # The remedy of the message works.
    make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)
    # The id of a photograph in the root begins with the root's name.
    (root / root.name).mkdir()
    for folder in (root, root / root.name):
        write_image(folder / "p50_L.png", fundus_photograph(50, SIZE))
    with pytest.raises(DataError, match=r"called 'photographs/p50_L'.*rename one of the two"):
        make_tiles(root, tmp_path / "tiles", **SPLIT, **FAST)


@pytest.mark.parametrize("name", ["overlays", "manifest.csv", "thumbnails.npy"])
def test_folders_that_the_tiles_need_are_refused(tmp_path, name):
    (tmp_path / "eyes" / name).mkdir(parents=True)
    write_image(tmp_path / "eyes" / name / "p1.png", fundus_photograph(1, SIZE))
    with pytest.raises(DataError, match=f"called '{name}' beside the tiles; rename that folder"):
        make_tiles(tmp_path / "eyes", tmp_path / "tiles", val=0, test=0, **FAST)


def _deep_tree(root):
    """Equal names at two sites, a photograph next to a folder of its name, and one in the root."""
    names = ["siteA/P1/OD", "siteB/P1/OD", "siteA/P1", "siteA/P2/OD", "P7_x"]
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / f"{name}.png", fundus_photograph(seed, SIZE))
    return names


def test_names_are_paths_below_the_root(tmp_path):
    root = tmp_path / ".P3 eyes"
    *deep, flat = _deep_tree(root)
    out = tmp_path / "tiles"
    options = {"patient_regex": r"(P\d)", "val": 0, "test": 0}
    make_tiles(root, out, **options, **FAST)
    found = {row.photograph: row for row in read_photographs(out / "photographs.csv")}
    assert set(found) == {*deep, f"P3 eyes/{flat}"}
    assert found["siteA/P1/OD"].label == "P1" and found["siteA/P1"].label == "siteA"
    # The expression is not searched in the root's name: P7, not P3.
    assert {found[f"P3 eyes/{flat}"].patient, found["siteA/P2/OD"].patient} == {"P7", "P2"}
    assert found[f"P3 eyes/{flat}"].label == "P3 eyes"
    for row in read_manifest(out / "manifest.csv"):
        stem = row.photograph.split("/")[-1]
        assert row.tile == f"{row.photograph}/{stem}_y{row.y}_x{row.x}.png"
        assert (out / row.tile).is_file()
    # A search for tiles finds all of them.
    assert collect(out).sizes.min() > 0


def test_cutting_a_photograph_again_keeps_tiles_in_its_subfolders(tmp_path):
    root, out = tmp_path / "eyes", tmp_path / "tiles"
    _deep_tree(root)
    options = {"val": 0, "test": 0, "overlays": True}
    make_tiles(root, out, **options, **FAST)
    inner = sorted((out / "siteA/P1/OD").iterdir())
    write_image(root / "siteA/P1.png", fundus_photograph(88, SIZE))
    old = out / "siteA/P1/P1_y0_x0.png"
    old.touch()
    assert make_tiles(root, out, **options, **FAST).reused == 4
    assert sorted((out / "siteA/P1/OD").iterdir()) == inner and not old.exists()
    rows = list(read_manifest(out / "manifest.csv"))
    assert all((out / row.tile).stat().st_size for row in rows)
    drawn = find_images(out / "overlays").paths
    assert {path.relative_to(out / "overlays").as_posix() for path in drawn} == {
        f"{row.photograph}.jpg" for row in rows
    }


def test_copies_are_reported_and_share_a_split(tree, tmp_path, capsys):
    root = copy(tree, tmp_path)
    for number in range(1, 9):
        shutil.copyfile(root / "krank/p01_L.png", root / "gesund ü" / f"z{number}_L.png")
    (root / "krank/empty_a.png").touch()
    (root / "krank/empty_b.png").touch()
    options = {**FAST, "progress": True, "val": 0.3, "test": 0.3}
    make_tiles(root, tmp_path / "a", **options)
    line = next(line for line in capsys.readouterr().out.splitlines() if "byte for byte" in line)
    assert line.startswith("8 photographs are copies of others")
    assert "gesund ü/z1_L = gesund ü/z2_L" in line and "krank/p01_L" in line
    assert "empty" not in line
    rows = read_photographs(tmp_path / "a/photographs.csv")
    copies = [row for row in rows if "/z" in row.photograph or row.photograph == "krank/p01_L"]
    assert len(copies) == 9
    assert len({(row.patient, row.split) for row in copies}) == 1
    assert not collect(tmp_path / "a").patients_known
    # The expression gives nine patients.
    make_tiles(root, tmp_path / "b", **{**SPLIT, "patient_regex": r"([a-z]+\d*)_"}, **FAST)
    rows = read_photographs(tmp_path / "b/photographs.csv")
    copies = [row for row in rows if row.patient[0] == "z" or row.patient == "p01"]
    assert len({row.patient for row in copies}) == 9 and len({row.split for row in copies}) == 1
    assert collect(tmp_path / "b").patients_known


def test_names_in_tables_have_their_accents_composed(tmp_path):
    name = unicodedata.normalize("NFD", "é")
    for seed, folder in enumerate((name, "b")):
        (tmp_path / "eyes" / folder).mkdir(parents=True)
        path = tmp_path / "eyes" / folder / f"{name}{seed}_L.png"
        write_image(path, fundus_photograph(seed, SIZE))
    options = {"patient_regex": "([^/_]+)_", "val": 0, "test": 0}
    make_tiles(tmp_path / "eyes", tmp_path / "tiles", **options, **FAST)
    rows = read_photographs(tmp_path / "tiles/photographs.csv")
    assert {(row.photograph, row.patient, row.label) for row in rows} == {
        ("é/é0_L", "é0", "é"), ("b/é1_L", "é1", "b")}  # fmt: skip
    assert make_tiles(tmp_path / "eyes", tmp_path / "tiles", **options, **FAST).reused == 2


def test_empty_tree_is_refused(tmp_path):
    (tmp_path / "photographs").mkdir()
    with pytest.raises(DataError, match="no images"):
        make_tiles(tmp_path / "photographs", tmp_path / "tiles", **FAST)
    assert not (tmp_path / "tiles").exists()


def test_limit_takes_from_every_split_and_overlays_are_drawn(tree, tmp_path):
    out = tmp_path / "tiles"
    summary = make_tiles(tree, out, limit=3, overlays=True, **SPLIT, **FAST)
    assert sorted(split for _, split in summary.photographs) == ["test", "train", "val"]
    drawn = find_images(out / "overlays").paths
    assert len(drawn) == 3
    green = read_image(drawn[0]).astype(int)
    assert ((green[..., 1] > 180) & (green[..., 0] < 90)).sum() > 100
    assert make_tiles(tree, out, **SPLIT, **FAST).reused == 3


def test_too_little_disk_space_is_refused(tree, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(cutting_run.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"are needed and 100 B are free"):
        make_tiles(tree, tmp_path / "tiles", **SPLIT, **FAST)


def test_full_disk_is_reported_in_one_line(tree, tmp_path, monkeypatch):
    def full(job):
        raise OSError(28, "No space left on device", str(job.folder))

    monkeypatch.setattr(cutting_run, "cut_photograph", full)
    with pytest.raises(DataError, match=r"No space left on device; .* continues"):
        make_tiles(tree, tmp_path / "tiles", **SPLIT, **FAST)


def test_damaged_options_are_reported(tree, tmp_path):
    make_tiles(tree, tmp_path / "tiles", limit=3, **SPLIT, **FAST)
    path = tmp_path / "tiles" / "make_tiles.json"
    assert json.loads(path.read_bytes())["tile"] == TILE
    path.write_text("{")
    with pytest.raises(DataError, match="make_tiles.json: damaged"):
        make_tiles(tree, tmp_path / "tiles", **SPLIT, **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile 0"),
        ({"stride": 0}, "stride 0"),
        ({"min_fov": 0}, "min_fov 0"),
        ({"min_fov": 1.5}, "min_fov 1.5"),
        ({"fov_width": 40}, "fov_width 40 is smaller than a tile of 48"),
        ({"file_format": "webp"}, "file_format 'webp': expected png or jpg"),
        ({"limit": 0}, "limit 0"),
        ({"workers": 0}, "workers 0"),
        ({"val": 0.6, "test": 0.6}, "val 0.6 and test 0.6"),
    ],
)
def test_options_out_of_range_are_refused(tree, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        make_tiles(tree, tmp_path / "tiles", **{**FAST, **options})
    assert not (tmp_path / "tiles").exists()


def test_left_out_files_are_reported(tmp_path, capsys):
    root = tmp_path / "photographs"
    write_image(root / "a" / "p01.png", fundus_photograph((0, 0), 200))
    (root / "a" / "grades.csv").touch()
    make_tiles(root, tmp_path / "out", tile=64, val=0, test=0, workers=1, progress=True)
    assert f"{root}: left out: 1 .csv" in capsys.readouterr().out
