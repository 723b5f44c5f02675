"""`encode` and `decode`: exactness, constant memory, interruptions and bad input."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import zarr

import vae
from vae.cli import main
from vae.data.images import encode_image, read_image, write_image
from vae.data.inputs import open_inputs
from vae.data.synthetic import fundus_photograph
from vae.evaluation import compression
from vae.inference import latent_store
from vae.inference.latent_store import attributes_crc, open_latents


@pytest.fixture(scope="module")
def model_path(finished):
    return str(finished[1])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tiny_tiles):
    """Tiles, photographs of two sizes not divisible by 8, and bad files."""
    root = tmp_path_factory.mktemp("mixed")
    for number, file in enumerate(sorted(tiny_tiles.rglob("*.png"))[:60]):
        shutil.copy(file, root / f"tile{number:02}.png")
    (root / "a").mkdir()
    image = fundus_photograph(0, 421)
    (root / "a" / "eye ä.png").write_bytes(encode_image(image, ".png"))
    (root / "other.png").write_bytes(encode_image(image[:61, :45], ".png"))
    (root / "tile05b.png").write_bytes(b"no image")
    (root / "zero.jpg").write_bytes(b"")
    return root


def encode(*options) -> int:
    return main(["encode", *map(str, options)])


def tree(path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): hashlib.md5(f.read_bytes()).hexdigest() for f in files}


def refused(command, capsys, message, code) -> None:
    capsys.readouterr()
    assert main([str(word) for word in command]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(f"^error: .*{message}", lines[0]), lines


@pytest.fixture(scope="module")
def reconstructions(mixed, model_path, tmp_path_factory):
    """Reconstructions of the same images by `reconstruct`."""
    out = tmp_path_factory.mktemp("reconstructed")
    assert main(["reconstruct", str(mixed), "--model", model_path, "--out", str(out)]) == 1
    return out / "reconstructions"


@pytest.mark.parametrize("suffix", ["zarr", "npz"])
def test_decode_equals_reconstruct(mixed, model_path, reconstructions, tmp_path, capsys, suffix):
    out = tmp_path / f"latents.{suffix}"
    assert encode(mixed, "--model", model_path, "--out", out, "--log_var") == 1
    said = capsys.readouterr().err
    assert "tile05b.png: is no image" in said and "zero.jpg: the file is empty" in said
    assert said.splitlines()[-1].startswith("error: 2 of 64 images could not be encoded")
    store = open_latents(out)
    assert {(g.height, g.width): len(g) for g in store.groups} == {
        (421, 421): 1, (61, 45): 1, (32, 32): 60,
    }  # fmt: skip
    assert [failure["item_id"] for failure in store.progress["failures"]] == ["tile05b", "zero"]
    assert main(["decode", str(out), "--model", model_path, "--out", str(tmp_path / "d")]) == 0
    decoded = sorted((tmp_path / "d").rglob("*.png"))
    assert len(decoded) == 62
    for path in decoded:
        same = reconstructions / path.relative_to(tmp_path / "d")
        np.testing.assert_array_equal(read_image(path), read_image(same))


def test_masks_are_stored_with_the_latents(tiny_data, model_path, tmp_path):
    image = fundus_photograph(0, 421)
    masks = {"a": np.zeros((421, 421), bool), "b": np.ones((421, 421), bool)}
    masks["a"][30:301, 40:333] = True
    masks["b"][200:215, 100:300] = False
    for name, mask in masks.items():
        write_image(tmp_path / f"eyes/{name}.png", image)
        white = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        write_image(tmp_path / f"masks/{name}.png", white)
    how = ["--model", model_path, "--fov_mask", str(tmp_path / "masks")]
    # Tiles of a dataset keep their FOV circle.
    inputs = [str(tmp_path / "eyes"), str(tiny_data)]
    assert main(["reconstruct", *inputs, "--out", str(tmp_path / "r"), "--no_pictures", *how]) == 0
    for suffix in ("zarr", "npz"):
        out, folder = tmp_path / f"latents.{suffix}", tmp_path / f"decoded_{suffix}"
        assert encode(*inputs, "--out", out, *how) == 0
        assert main(["decode", str(out), "--model", model_path, "--out", str(folder)]) == 0
        decoded = sorted(folder.rglob("*.png"))
        assert len(decoded) > 2
        for path in decoded:
            same = tmp_path / "r" / "reconstructions" / path.relative_to(folder)
            np.testing.assert_array_equal(read_image(path), read_image(same))
        for name, mask in masks.items():
            found = read_image(folder / f"{name}.png")
            assert not found[~mask].any() and found[mask].any()


def test_latents_keep_the_metadata_of_records(tiny_data, model_path, tmp_path):
    out = tmp_path / "l.zarr"
    options = ["--model", model_path, "--out", out, "--log_var"]
    assert encode(tiny_data, "--split", "test", *options) == 0
    store, model = open_latents(out), vae.load_model(model_path)
    assert store.about["model"] == model.hash and store.about["version"] == vae.__version__
    (group,) = store.groups
    rows, items = group.rows(0, len(group)), list(open_inputs([tiny_data], split="test").read())
    for row, item in zip(rows, items, strict=True):
        for name in ("item_id", "path", "photograph", "patient", "label", "split", "origin", "fov"):
            assert getattr(row, name) == getattr(item, name)
        assert row.size == item.image.shape[:2]
    posterior = model.posterior(np.stack([item.inside() for item in items]))
    np.testing.assert_allclose(group.latents(0, len(group)), posterior.mean, atol=1e-5)
    log_var = zarr.open_group(out, mode="r")["32x32/log_var"][:]
    np.testing.assert_allclose(log_var, posterior.log_var, atol=1e-5)


# zarr warns of the unfinished file before it is removed, as after a real kill.
@pytest.mark.filterwarnings("ignore:Object at half.partial")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--quantise"], marks=pytest.mark.soak),
        ["--dtype", "float16", "--log_var"],
    ],
)
def test_the_same_command_after_any_interruption_gives_the_same_bytes(
    mixed, model_path, tmp_path, monkeypatch, options
):
    # Chunks of four tiles instead of sixteen thousand, so that there are several commits.
    monkeypatch.setattr(latent_store, "_PIECE_BYTES", 4 * 4 * 4 * 8 * 4)
    out = tmp_path / "l.zarr"
    command = ["encode", str(mixed), "--model", model_path, "--out", str(out), *options]
    assert main(command) == 1
    undisturbed = tree(out)
    shutil.rmtree(out)
    append, left, starts = zarr.Array.append, 0, []

    class Killed(BaseException):
        pass

    def appended(self, *args, **kwargs):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return append(self, *args, **kwargs)

    # Every file is renamed into place, so a kill and an exception leave the same files. The
    # first commit takes about thirty appends, for three groups, and later ones about ten.
    monkeypatch.setattr(zarr.Array, "append", appended)
    for left in (20, 35, 15):  # noqa: B007 - counted down by `appended`
        with pytest.raises(Killed):
            main(command)
        attributes = json.loads((out / "zarr.json").read_text())["attributes"]
        starts.append(attributes["progress"]["read"])
        (out / "half.partial").touch()  # zarr's name for a file that is being written
    assert starts[0] == 0 and len(set(starts)) == 3, starts
    left = 1000
    assert main(command) == 1
    assert tree(out) == undisturbed


def test_complete_store_is_kept_and_another_command_is_refused(mixed, model_path, tmp_path, capsys):
    out, source = tmp_path / "l.zarr", mixed / "tile00.png"
    base = ["encode", source, "--model", model_path, "--out", out]
    assert encode(*base[1:]) == 0
    before = tree(out)
    assert encode(*base[1:]) == 0 and "is there already" in capsys.readouterr().out
    earlier = f"{model_path}/checkpoints/4"
    refused([*base, "--quantise"], capsys, "begun with quantise null.* has 3.0", 2)
    refused([*base, "--dtype", "float16"], capsys, 'dtype "float32".* has "float16"', 2)
    refused(["encode", mixed / "a", *base[2:]], capsys, "begun with inputs .*tile00.* has .*a", 2)
    refused([*base, "--model", earlier], capsys, 'begun with model "[0-9a-f]{16}".* has "', 2)
    decode = ["decode", out, "--model", earlier, "--out", tmp_path / "d"]
    hashes = "of model [0-9a-f]{16} .* is [0-9a-f]{16}; only the model that encoded"
    refused(decode, capsys, hashes, 2)
    assert tree(out) == before and not (tmp_path / "d").exists()


def test_float16_is_within_a_grey_level(tiny_data, model_path, tmp_path):
    images = {}
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.zarr"
        options = ["--model", model_path, "--out", out, "--dtype", dtype]
        assert encode(tiny_data, "--split", "val", *options) == 0
        folder = tmp_path / dtype
        assert main(["decode", str(out), "--model", model_path, "--out", str(folder)]) == 0
        images[dtype] = [read_image(path).astype(int) for path in sorted(folder.rglob("*.png"))]
    difference = np.abs(np.array(images["float32"]) - np.array(images["float16"]))
    # Rounding a latent of up to 8 changes it by at most 1/512 standard deviation.
    assert 0 < difference.max() == 1 and (difference > 0).mean() < 0.02


def test_quantised_is_smaller_than_jpeg_of_the_same_quality(
    tiny_data, model_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(compression, "SAMPLE_ITEMS", 8)
    out = tmp_path / "q.zarr"
    assert encode(tiny_data, "--split", "test", "--model", model_path, "--out", out,
                  "--quantise", "2") == 0  # fmt: skip
    said = capsys.readouterr().out
    table = re.findall(r"^(\S.*?)  +([\d,]+) +(0\.\d+) +[\d.]+ dB$", said, re.M)
    (ours, size, _), _, (jpeg, other, _) = table
    assert ours == "quantised latents" and jpeg.endswith("as good in SSIM")
    assert float(size.replace(",", "")) < float(other.replace(",", ""))
    store = open_latents(out)
    model, (group,) = vae.load_model(model_path), store.groups
    images = np.stack([item.inside() for item in open_inputs([tiny_data], split="test").read()])
    deviation = np.exp(0.5 * model.posterior(images).log_var)
    error = np.abs(group.latents(0, len(group)) - model.encode(images)) / deviation
    assert error.max() < 1.5 and error.mean() > 0.3  # half a step of 2; deviations differ a little
    stored = zarr.open_group(out, mode="r")["32x32/packed"].shape[0]
    assert f"in {stored + 8 * len(store) + 4 * 8:,} bytes" in said


def test_vectors_of_a_model_of_one_tile_size(mixed, vector_model, tmp_path, capsys):
    path, tiles = vector_model, mixed / "tile00.png"
    command = ["--model", path, "--out", tmp_path / "l.zarr"]
    assert encode(mixed, *command) == 1
    said = capsys.readouterr().err
    assert "other.png: 61x45, and this model encodes tiles of 32x32 only; cut them with" in said
    assert "make-tiles --tile 32" in said and "error: 4 of 64 images" in said
    (group,) = open_latents(tmp_path / "l.zarr").groups
    assert group.shape == (16,) and len(group) == 60
    model = vae.load_model(path)
    decode = ["decode", tmp_path / "l.zarr", "--model", path, "--out", tmp_path / "d"]
    assert main([str(word) for word in decode]) == 0
    images = np.stack([read_image(mixed / f"tile{i:02}.png") for i in range(6)])
    decoded = np.stack([read_image(tmp_path / "d" / f"tile{i:02}.png") for i in range(6)])
    np.testing.assert_array_equal(decoded, model.reconstruct(images))
    assert encode(tiles, "--model", path, "--out", tmp_path / "q.zarr", "--quantise", "0.1") == 0
    (quantised,) = open_latents(tmp_path / "q.zarr").groups
    deviation = np.exp(0.5 * model.posterior(images[:1]).log_var)
    error = np.abs(quantised.latents(0, 1) - model.encode(images[:1])) / deviation
    assert 0 < error.max() < 0.051  # half a step


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["none.png", "--out", "x.zarr"], 1, "none.png: no such file"),
        ([".", "--out", "x.zarr"], 2, "x.zarr lies in ., which is read"),
        (["empty", "--out", "x.zarr"], 1, "no images"),
        (["tile.png", "--out", "x.h5"], 2, "x.h5: expected a name ending in .zarr or .npz"),
        (["tile.png", "--out", "folder.zarr"], 1, "folder.zarr: no latents of"),
        (["tile.png", "--out", "text.npz"], 1, "text.npz: no latents of"),
        (["tile.png", "--out", "tile.png/x.zarr"], 1, "Not a directory"),
        (["tile.png", "--out", "tile.png/x.npz"], 1, "Not a directory"),
        (["tile.png", "--out", "x.zarr", "--dtype", "float16", "--quantise"], 2, "drop one"),
        (["tile.png", "--out", "x.zarr", "--log_var", "--quantise"], 2, "drop one"),
        (["tile.png", "--out", "x.zarr", "--quantise", "0"], 2, "expected 0.01 to 100"),
        (["tile.png", "--out", "x.zarr", "--model", "nowhere"], 1, "nowhere"),
    ],
)
def test_encode_refuses(mixed, model_path, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    if options[0] == "tile.png":
        shutil.copy(mixed / "tile00.png", "tile.png")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "mine.txt").write_text("mine")
    (tmp_path / "text.npz").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    refused(["encode", "--model", model_path, *options], capsys, message, code)
    assert tree(tmp_path) == before


def test_damaged_latents_are_refused(mixed, model_path, tmp_path, capsys, monkeypatch):
    good = tmp_path / "good.zarr"
    assert encode(mixed, "--model", model_path, "--out", good) == 1

    def damaged(name, change):
        path = tmp_path / name
        shutil.copytree(good, path)
        change(path)
        out = tmp_path / f"{name}.out"
        return ["decode", path, "--model", model_path, "--out", out]

    def flip(path):
        chunk = path / "32x32" / "mean" / "c" / "0" / "0" / "0" / "0"
        content = bytearray(chunk.read_bytes())
        content[100] ^= 1
        chunk.write_bytes(content)

    def unfinish(path):
        """Returns a store to the state before its last commit, as an interruption leaves it."""
        root = zarr.open_group(path, mode="r+")
        groups = {name: dict(group.attrs) for name, group in root.groups()}
        attributes = {**root.attrs, "groups": groups}
        attributes["progress"] |= {"complete": False}
        root.attrs.update(progress=attributes["progress"], crc=attributes_crc(attributes))

    def edit(path):
        about = json.loads((path / "zarr.json").read_text())
        about["attributes"]["about"]["model_path"] = "other"
        (path / "zarr.json").write_text(json.dumps(about))

    assert main([str(word) for word in damaged("flip", flip)]) == 1
    said = capsys.readouterr().err
    assert "mean of 32x32 is damaged" in said and "Traceback" not in said
    # Items outside the damaged chunk are decoded as from the undamaged store.
    whole, part = tmp_path / "whole", tmp_path / "flip.out"
    assert main(["decode", str(good), "--model", str(model_path), "--out", str(whole)]) == 0
    others = [path.relative_to(part) for path in part.rglob("*.png")]
    assert others
    assert all((part / path).read_bytes() == (whole / path).read_bytes() for path in others)
    lost = damaged("lost", lambda p: (p / "32x32" / "mean/c/0/0/0/0").unlink())
    refused(lost, capsys, "1 chunks of 32x32/mean are missing", 1)
    gone = damaged("gone", lambda p: shutil.rmtree(p / "32x32" / "label"))
    refused(gone, capsys, "32x32/label is missing or cut", 1)
    refused(damaged("half", unfinish), capsys, "unfinished, 64 of 64 images", 1)
    refused(damaged("edit", edit), capsys, "attributes do not match their checksum", 1)
    refused(damaged("cut", lambda p: (p / "zarr.json").write_text("{")), capsys, "no latents", 1)
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", x=np.ones(3))
    zarr.create_group("other.zarr")
    for name, message in [("none.zarr", "no such latents"), ("other.npz", "no latents of"),
                          ("other.zarr", "no latents of")]:  # fmt: skip
        refused(["decode", name, "--model", model_path, "--out", "d"], capsys, message, 1)
    assert not (tmp_path / "d").exists()


def test_no_readable_input(model_path, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "l.zarr"
    assert encode(tmp_path / "bad.png", "--model", model_path, "--out", out) == 1
    assert "1 of 1 images could not be encoded" in capsys.readouterr().err
    refused(["decode", out, "--model", model_path, "--out", tmp_path / "d"], capsys, "no items", 1)
