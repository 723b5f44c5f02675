"""No command overwrites its inputs or files that it did not make; names of any kind work."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr

from vae.cli import main
from vae.data.images import read_image, write_image
from vae.data.record_files import write_tfrecords
from vae.data.records import TFRecordSource
from vae.data.synthetic import fundus_photograph
from vae.inference.latent_store import attributes_crc, open_latents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(finished):
    return str(finished[1])


@pytest.fixture
def eyes(tmp_path, monkeypatch) -> Path:
    """Two photographs in `eyes` below the working directory, which also has our outputs."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        write_image(tmp_path / "eyes" / f"{name}.png", fundus_photograph(number, 64))
    (tmp_path / "link").symlink_to("eyes")
    return Path("eyes")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys, *command) -> str:
    capsys.readouterr()
    assert main([str(word) for word in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


READ, FOREIGN = "which is read", "was not made by"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            "make-tiles --photographs eyes --out link --patients_unknown --val 0 --test 0",
            "neither may lie|is read",
        ),
        ("make-tiles --photographs eyes --out other --patients_unknown --val 0 --test 0", FOREIGN),
        ("build --tiles tree --data_dir tree --patients_unknown --val 0 --test 0", READ),
        ("build --tiles tree --data_dir other --patients_unknown --val 0 --test 0", FOREIGN),
        ("reconstruct eyes --out link", READ),
        ("reconstruct eyes/a.png --out eyes", "could be overwritten"),
        ("reconstruct eyes --out other", FOREIGN),
        ("enhance eyes --out link/out", READ),
        ("enhance eyes --out .", "could be overwritten"),
        ("encode eyes --out link/eyes.zarr", READ),
        ("encode eyes/a.png --out eyes/a.npz/x.npz --model eyes", READ),
        ("decode e.zarr --out e.zarr", READ),
        ("decode e.zarr --out e.zarr/out", READ),
        ("decode e.zarr --out eyes", FOREIGN),
        ("embed e.zarr --out e.zarr", READ),
        ("embed e.zarr --out other", FOREIGN),
        ("evaluate --data tree --out tree/results", READ),
        ("evaluate --data tree --report other", FOREIGN),
        ("evaluate-samples --data tree --samples eyes --out eyes/out", READ),
        ("sample --out eyes", FOREIGN),
        ("interpolate eyes/a.png eyes/b.png --out eyes", "could be overwritten"),
        ("degradations eyes/a.png --out eyes/a.png", READ),
        ("degradations eyes/a.png --out link/a.png", READ),
        ("degradations eyes/a.png --out eyes/b.png", "is there already"),
        ("export run --out run/model.safetensors", READ),
        ("export run --out taken.safetensors", "is there already"),
        ("export run --stablehlo other", "is there already"),
        ("export run --stablehlo run/programs", READ),
    ],
)
def test_inputs_are_never_overwritten(eyes, command, reason, capsys):
    for name in ("e.zarr", "other", "run", "tree/p/a"):
        Path(name).mkdir(parents=True)
    write_image("tree/p/a/0.png", fundus_photograph(0, 32))
    Path("other/mine.txt").write_text("mine")
    Path("taken.safetensors").write_text("mine")
    before = content(Path())
    assert re.search(reason, refused(capsys, *command.split()))
    assert content(Path()) == before


def test_runs_do_not_write_over_what_they_read(eyes, tiny_data):
    command = [sys.executable, ROOT / "run_experiment.py", f"--config={ROOT}/configs/fundus256.py"]
    for workdir, reason in [("eyes", FOREIGN), (tiny_data, READ)]:
        given = [f"--config.data.dir={tiny_data}", f"--workdir={workdir}"]
        run = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
        assert run.returncode == 2 and re.search(f"^error: --workdir .*{reason}", run.stderr)


def test_decoding_does_not_replace_what_was_encoded(eyes, model, capsys):
    assert main(["encode", "eyes", "--model", model, "--out", "e.zarr"]) == 0
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 0
    before = content(Path("d"))
    assert main(["encode", "d", "--model", model, "--out", "again.zarr"]) == 0
    assert READ in refused(capsys, "decode", "again.zarr", "--model", model, "--out", "d")
    before.pop("d/.fundus-vae.json")
    assert before.items() <= content(Path("d")).items()
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 0  # its own output


def test_link_to_a_file_is_replaced(eyes, model):
    assert main(["encode", "eyes", "--model", model, "--out", "e.zarr"]) == 0
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 0
    before = content(eyes)
    Path("d/a.png").unlink()
    Path("d/a.png").symlink_to(Path("eyes/a.png").absolute())
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 0
    assert not Path("d/a.png").is_symlink() and content(eyes) == before


def test_two_suffixes_are_two_photographs(eyes, model):
    shutil.move("eyes/b.png", "eyes/b")
    write_image("eyes/a.jpg", fundus_photograph(2, 64))
    os.rename("eyes/b", "eyes/b.png")
    assert main(["reconstruct", "eyes", "--model", model, "--out", "out", "--no_pictures"]) == 0
    written = sorted(path.name for path in Path("out/reconstructions").iterdir())
    assert written == ["a.jpg.png", "a.png.png", "b.png"]
    assert main(["encode", "eyes", "--model", model, "--out", "e.zarr"]) == 0
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 0
    assert sorted(path.name for path in Path("d").glob("*.png")) == written


def _rename_items(store: Path, name: str) -> None:
    """Gives all items of a zarr store the same id."""
    for _, group in zarr.open_group(store, mode="r+").groups():
        group["item_id"][:] = np.array([name] * group["item_id"].shape[0], object)


def test_second_item_of_a_name_is_a_failure(eyes, model, capsys):
    assert main(["encode", "eyes", "--model", model, "--out", "e.zarr"]) == 0
    _rename_items(Path("e.zarr"), "same")
    capsys.readouterr()
    assert main(["decode", "e.zarr", "--model", model, "--out", "d"]) == 1
    said = capsys.readouterr()
    assert "d: 1 images" in said.out
    assert "item 1 is called 'same', as one before it" in said.err
    assert said.err.splitlines()[-1].startswith("error: 1 of 2 images failed")
    first = read_image("d/same.png")
    assert main(["reconstruct", "eyes/a.png", "--model", model, "--out", "r"]) == 0
    np.testing.assert_array_equal(first, read_image("r/reconstructions/a.png"))


def test_dataset_with_one_tile_twice(tiny_data, model, tmp_path, capsys, reseal):
    """`build` writes no such dataset, but somebody may have changed a shard."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (info_path,) = (tmp_path / "data").rglob("dataset_info.json")
    (shard,) = info_path.parent.glob("fundus_tiles-test.tfrecord-*")
    payloads = list(TFRecordSource([shard]).read_many(range(3)))
    write_tfrecords(shard, [*payloads, payloads[0]])
    shutil.rmtree(info_path.parent / "index")
    info = json.loads(info_path.read_text())
    (split,) = (split for split in info["splits"] if split["name"] == "test")
    split["shardLengths"] = ["4"]
    info_path.write_text(json.dumps(info))
    reseal(info_path.parent)
    command = ["reconstruct", str(tmp_path / "data"), "--split", "test", "--model", model]
    assert main([*command, "--out", str(tmp_path / "out"), "--no_pictures"]) == 1
    said = capsys.readouterr()
    assert "a second image is called" in said.err and "mean of 3 images" in said.out
    assert len(list((tmp_path / "out" / "reconstructions").rglob("*.png"))) == 3


# --- Names ----------------------------------------------------------------------------------------


def test_long_name_and_narrow_terminal(eyes, model):
    """A name of 250 bytes with characters that the terminal cannot print."""
    name = "眼" * 82
    os.rename("eyes/a.png", f"eyes/{name}.png")
    commands = ["reconstruct eyes --out out", "encode eyes --out e.zarr", "decode e.zarr --out d"]
    program = (
        "import sys\n"
        "from vae.cli import main\n"
        "model, *commands = sys.argv[1:]\n"
        "sys.exit(any([main([*command.split(), '--model', model]) for command in commands]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, model, *commands],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for folder in ("out/reconstructions", "out/comparisons", "out/differences", "d"):
        assert Path(folder, f"{name}.png").is_file()
    assert not [path for path in Path().rglob(".*") if path.suffix == ".tmp"]
    assert open_latents("e.zarr").groups[0].rows(0, 2)[1].item_id == name


def test_make_tiles_rejects_a_name_too_long_for_its_tiles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["眼" * 82, "b", "c"]):
        write_image(tmp_path / "eyes" / f"{name}.png", fundus_photograph(number, 400))
    command = ["make-tiles", "--photographs", "eyes", "--out", "tiles", "--patients_unknown"]
    options = ["--tile", "64", "--stride", "64", "--val", "0", "--test", "0", "--workers", "1"]
    assert main([*command, *options]) == 1
    said = capsys.readouterr()
    assert "File name too long" in said.out
    assert "error: 1 photographs gave no tiles" in said.err
    assert list(Path("tiles/eyes/b").glob("b_y*.png"))


# --- Pipes, and contents larger than their file ---------------------------------------------------


def within(seconds: float, command: list[str]) -> int:
    """Returns the exit code of a command; fails if the command hangs."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(command)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert codes, f"{command} is waiting"
    return codes[0]


@pytest.mark.parametrize(
    ("pipe", "command"),
    [
        ("m.safetensors", "info m.safetensors"),
        ("m/model.safetensors", "info m"),
        ("m/config.json", "info m"),
        ("m", "reconstruct eyes --model m --out out"),
        ("e.npz", "decode e.npz --out out"),
        ("e.zarr", "decode e.zarr --out out"),
        ("e.zarr/zarr.json", "decode e.zarr --out out"),
        ("e.npz", "encode eyes --out e.npz"),
        ("p.csv", "make-tiles --photographs eyes --out t --patients p.csv"),
        ("p.csv", "build --tiles tree --data_dir out --patients p.csv"),
        ("tiles/manifest.csv", "build --tiles tiles --data_dir out"),
        ("data/dataset_info.json", "evaluate --data data"),
    ],
)
def test_named_pipes_are_refused(eyes, pipe, command, capsys):
    write_image("tree/p/a/0.png", fundus_photograph(0, 32))
    Path(pipe).parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    assert within(120, command.split()) == 1
    assert f"{pipe} is a named pipe, no regular file; expected" in capsys.readouterr().err


@pytest.fixture
def latents(eyes, model) -> Path:
    assert main(["encode", "eyes", "--model", model, "--out", "e.zarr"]) == 0
    return Path("e.zarr")


def undecodable(path, model, capsys) -> str:
    capsys.readouterr()
    assert main(["decode", str(path), "--model", model, "--out", "out"]) == 1
    assert not Path("out").exists()
    return capsys.readouterr().err


def test_compressed_chunks_are_refused(latents, model, capsys):
    group = zarr.open_group(latents / "64x64", mode="r+")
    mean = group["mean"]
    shape, chunks, values = mean.shape, mean.chunks, mean[:]
    del group["mean"]
    new = group.create_array(
        "mean", shape=shape, chunks=chunks, dtype="float32", compressors=[zarr.codecs.GzipCodec()]
    )
    new[:] = values
    message = "64x64/mean is coded by GzipCodec; expected bytes with checksums"
    assert message in undecodable(latents, model, capsys)


@pytest.mark.parametrize("name", ["mean", "number", "item_id"])
def test_arrays_larger_than_their_files_are_refused(latents, model, capsys, name):
    """A store whose array chunks and counts claim 10^9 rows."""
    for path, change in [
        (latents / "64x64" / name / "zarr.json", ("shape", 0)),
        (latents / "64x64" / name / "zarr.json",
         ("chunk_grid", "configuration", "chunk_shape", 0)),
    ]:  # fmt: skip
        about = json.loads(path.read_text())
        place = about
        for key in change[:-1]:
            place = place[key]
        place[change[-1]] = 10**9
        path.write_text(json.dumps(about))
    root = zarr.open_group(latents, mode="r+")
    groups = {name: dict(group.attrs) for name, group in root.groups()}
    attributes = {**root.attrs, "groups": groups}
    attributes["about"]["count"] = 10**9
    attributes["progress"].update(rows={"64x64": 10**9}, items=10**9, read=10**9)
    root.attrs.update({**attributes, "crc": attributes_crc(attributes)})
    said = undecodable(latents, model, capsys)
    assert re.search(f"64x64/{name} of shape .*1000000000.* bytes, and its files hold", said)


def test_chunk_of_more_texts_than_bytes_is_refused(latents, model, capsys):
    (chunk,) = (latents / "64x64" / "item_id" / "c").rglob("*")
    content = bytearray(chunk.read_bytes())
    content[:4] = (2**32 - 1).to_bytes(4, "little")
    chunk.write_bytes(content)
    message = "a chunk of 64x64/item_id says that it holds 4,294,967,295 texts"
    assert message in undecodable(latents, model, capsys)


def test_npz_members_larger_than_their_part_are_refused(eyes, model, capsys):
    assert main(["encode", "eyes", "--model", model, "--out", "e.npz"]) == 0
    with np.load("e.npz") as file:
        arrays = dict(file)
    np.savez_compressed("compressed.npz", **arrays)
    assert "is compressed; expected arrays as they are" in undecodable(
        "compressed.npz", model, capsys
    )
    shape = str(arrays["64x64/mean"].shape).encode()
    # Of the same length as the replaced text, so that later offsets stay valid.
    huge, broken = b"(99999, 999)", b"(2, 8, 8, 8,"
    assert len(shape) == len(huge) == len(broken)
    content = Path("e.npz").read_bytes()
    Path("large.npz").write_bytes(content.replace(shape, huge))
    said = undecodable("large.npz", model, capsys)
    assert re.search(r"/mean.npy of shape \[99999, 999\] takes 399,596,004 bytes", said)
    Path("broken.npz").write_bytes(content.replace(shape, broken))
    assert "broken.npz: no latents of `fundus-vae encode`" in undecodable(
        "broken.npz", model, capsys
    )


def test_quantised_latents_of_an_impossible_shape():
    from vae.data.errors import DataError
    from vae.inference import quantise

    packed = quantise.pack(np.zeros((4, 4, 2), np.int32))
    assert not quantise.unpack(packed, (4, 4, 2)).any()
    with pytest.raises(DataError, match="no bytes of an item"):
        quantise.unpack(packed, (10**6, 10**6, 48))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("encoder_depth", [10**6, 1], "model.encoder_depth=.* expected numbers from 1 to 256"),
        ("width", 10**9, "model.width=1000000000, expected numbers from 1 to 16384"),
        ("latent_channels", 10**9, "model.latent_channels=1000000000, expected numbers"),
        ("decoder_depth", [200, 200], "says model.decoder_depth=.*, and it holds .* tensors"),
    ],
)
def test_models_of_impossible_sizes(model, tmp_path, capsys, setting, value, message):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    assert main(["export", model, "--out", str(path)]) == 0
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    config["model"][setting] = value
    save_file(tensors, path, metadata | {"config": json.dumps(config)})
    capsys.readouterr()
    assert within(60, ["info", str(path)]) == 1
    assert re.search(f"^error: {path}: .*{message}", capsys.readouterr().err)
