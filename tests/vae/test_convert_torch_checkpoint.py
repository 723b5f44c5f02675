"""convert_torch_checkpoint: all kinds of input files, and the files it writes."""

import dataclasses
import json
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from vae.checkpoints.loading import load_saved, variables_hash
from vae.checkpoints.modules import initial_variables, make_model
from vae.checkpoints.safetensors_io import MODEL_FILE, write_safetensors
from vae.configs.fundus256 import get_config
from vae.data.errors import DataError
from vae.models import FundusVAE

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch_twin import images, nchw, nhwc, trained_like, without_prefix  # noqa: E402

from vae.convert_torch_checkpoint import convert, main  # noqa: E402
from vae.convert_torch_checkpoint.source import read_state  # noqa: E402
from vae.convert_torch_checkpoint.table import leaves, table  # noqa: E402
from vae.convert_torch_checkpoint.torch_module import PublishedVAE  # noqa: E402
from vae.convert_torch_checkpoint.verify import Difference, compare  # noqa: E402

# The published structure at full width; the sizes that the converter infers are small.
MODEL = FundusVAE(latent_size=12, image_size=16)
TINY = FundusVAE(
    latent_size=6, image_size=16, width=4, stages=(1, 1), head=(8,), decoder_width=12
)  # fmt: skip


@pytest.fixture(scope="module")
def twin():
    return trained_like(MODEL, batch=64)


@pytest.fixture(scope="module")
def source(twin, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("source") / "model.pth"
    torch.save(twin.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def out(source, tmp_path_factory) -> pathlib.Path:
    """The converted model."""
    out = tmp_path_factory.mktemp("converted") / "published"
    assert main([str(source), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tiny():
    return without_prefix(trained_like(TINY))


def blank() -> dict[str, torch.Tensor]:
    """Published keys and shapes; all tensors are views of one zero tensor to save time."""
    wanted = leaves(MODEL)
    zeros = torch.zeros(max(leaf.size for leaf in wanted.values()))
    state = {}
    for entry in table(MODEL):
        leaf = wanted[entry.path]
        theirs = entry.layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        value = torch.tensor(0) if leaf.dtype == np.int32 else zeros[: leaf.size]
        state["autoencoder." + entry.source] = value.reshape(theirs)
    return state


def one_line(capsys) -> str:
    """Returns the error message of the command."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def refused(capsys, tmp_path, source, *options, code=1) -> str:
    """Runs a conversion that must fail and leave nothing; returns the error."""
    before = set(tmp_path.iterdir())
    assert main([str(source), "--out", str(tmp_path / "out"), *options]) == code
    assert set(tmp_path.iterdir()) == before
    return one_line(capsys)


def test_converted_model_is_one_like_any_other(source, twin, out):
    saved = load_saved(out)
    assert saved.config.model.latent_size == 12 and saved.config.model.image_size == 16
    assert saved.config.data.crop == 16
    assert saved.provenance["source"] == "model.pth" and len(saved.provenance["sha256"]) == 64
    assert str(source) in saved.provenance["command"]
    np.testing.assert_array_equal(saved.latent_mean, np.zeros(12))
    np.testing.assert_array_equal(saved.latent_var, np.ones(12))
    x = images(3, 16)
    with torch.inference_mode():
        theirs = nhwc(twin.decode(twin.encode(nchw(x))[0]))
    apply = jax.jit(make_model(saved.config).apply)
    ours = apply(saved.variables, 2 * x - 1)
    # The tolerance of the reconstruction in [0, 1] that the command promises.
    np.testing.assert_allclose((ours + 1) / 2, theirs, rtol=0, atol=1e-4)


def test_round_trip_is_bit_exact(twin, out, tmp_path, capsys):
    back = tmp_path / "back.pth"
    assert main(["--to_torch", str(out), "--out", str(back)]) == 0
    state, expected = torch.load(back, weights_only=True), twin.state_dict()
    assert list(state) == list(expected) and len(state) == 332
    for key, tensor in expected.items():
        assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor), key
    with torch.device("meta"):
        module = PublishedVAE(MODEL)
    module.load_state_dict(state, strict=True, assign=True)
    assert main(["--to_torch", str(out), "--out", str(back)]) == 2
    assert "--overwrite replaces it" in one_line(capsys)
    again = tmp_path / "again"
    assert main([str(back), "--out", str(again)]) == 0
    assert variables_hash(load_saved(again).variables) == variables_hash(load_saved(out).variables)


def test_verify_prints_the_differences(source, tmp_path, capsys):
    assert main([str(source), "--out", str(tmp_path / "out"), "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("mean", "log_var", "image"):
        assert any(
            line.startswith(name) and "largest absolute difference" in line for line in lines
        )


def test_verify_sees_a_wrong_weight(tiny):
    arrays = {e.path: a for e, a in convert.converted("tiny", tiny, TINY)}
    assert compare(tiny, convert.nested(arrays), TINY).agrees
    path = "params/encoder/layer1_0/conv2/kernel"
    wrong = arrays | {path: arrays[path].swapaxes(0, 1)}
    assert not compare(tiny, convert.nested(wrong), TINY).agrees
    assert not Difference((0.0, 1.0), (0.0, 1.0), (float("nan"), 1.0)).agrees
    assert not Difference((0.0, 1.0), (2e-3, 1.0), (0.0, 1.0)).agrees


def test_dry_run_prints_the_table_and_writes_nothing(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(source), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 333 and not any(tmp_path.iterdir())
    assert "332 tensors" in lines[-1] and "latent size 12, images of 16 pixels" in lines[-1]
    row = next(line for line in lines if line.startswith("encoder.conv1.weight"))
    assert "[64, 3, 7, 7]" in row and "[7, 7, 3, 64]" in row and "OIHW -> HWIO" in row
    row = next(line for line in lines if line.startswith("encoder.bn1.num_batches_tracked"))
    assert "int64" in row and "int32" in row


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda s: s),
        ("autoencoder.", lambda s: s),
        ("module.", lambda s: s),
        ("module.autoencoder.", lambda s: s),
        ("autoencoder.module.", lambda s: s),
        ("module.module._orig_mod.", lambda s: s),
        ("", lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}),
        ("module.", lambda s: {"model_state_dict": s, "loss": torch.zeros(())}),
        ("autoencoder.", lambda s: {"model": {"state_dict": s}}),
    ],
)
def test_prefixes_and_nesting(tiny, tmp_path, prefix, wrap):
    torch.save(wrap({prefix + key: value for key, value in tiny.items()}), tmp_path / "model.pth")
    state = read_state(tmp_path / "model.pth")
    assert list(state) == list(tiny)
    assert all(torch.equal(state[key], value) for key, value in tiny.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tiny, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.items()}
    assert convert.rounded(state) == []
    if dtype == torch.float64:
        state["decoder.0.bias"] = state["decoder.0.bias"] + 1e-12
        assert convert.rounded(state) == ["decoder.0.bias"]
    convert.check("tiny", state, TINY)
    for entry, array in convert.converted("tiny", state, TINY):
        want = state[entry.source].to(torch.int32 if array.dtype == np.int32 else torch.float32)
        np.testing.assert_array_equal(entry.layout.to_torch(array), want.numpy())


def test_layouts_in_memory_do_not_matter(tiny):
    """Channels-last weights, and views of larger tensors."""
    state = {
        key: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
        for key, value in tiny.items()
    }
    key = "decoder.4.weight"
    state[key] = torch.cat([tiny[key], tiny[key]], dim=1)[:, : tiny[key].shape[1]]
    assert not state[key].is_contiguous()
    plain = dict(convert.converted("tiny", tiny, TINY))
    for entry, array in convert.converted("tiny", state, TINY):
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, plain[entry])


def test_the_old_format_and_safetensors_give_the_same(source, twin, out, tmp_path):
    torch.save(
        twin.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )  # fmt: skip
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    save_file(without_prefix(twin), tmp_path / "model.safetensors")
    expected = variables_hash(load_saved(out).variables)
    for name in ("old.pth", "model.safetensors"):
        assert main([str(tmp_path / name), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
        assert variables_hash(load_saved(tmp_path / "out").variables) == expected


def test_everything_wrong_is_listed_at_once(tmp_path, capsys):
    state = blank()
    del state["autoencoder.encoder.fc.1.bias"], state["autoencoder.decoder.0.bias"]
    state["autoencoder.decoder.8.weight"] = torch.zeros(1)
    state["autoencoder.encoder.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["autoencoder.encoder.bn1.running_mean"] = torch.zeros(64, dtype=torch.int64)
    state["autoencoder.encoder.bn1.bias"] = torch.zeros(64).to_sparse()
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    error = refused(capsys, tmp_path, tmp_path / "model.pth")
    assert "6 problems" in error and "latent size 12 and images of 16 pixels" in error
    for problem in (
        "missing encoder.fc.1.bias",
        "missing decoder.0.bias",
        "unknown decoder.8.weight",
        "encoder.conv1.weight is [64, 3, 3, 3], expected [64, 3, 7, 7]",
        "encoder.bn1.running_mean is int64 strided, expected strided float32 or float16",
        "encoder.bn1.bias is float32 sparse_coo, expected strided float32",
    ):
        assert problem in error


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("decoder.6.weight", (770, 2048), "the rows of decoder.6.weight are no 3 x S x S"),
        ("decoder.0.weight", (512, 13), "encoder.fc.2.weight is [24, 512], expected [26, 512]"),
        ("decoder.6.weight", (768,), "decoder.6.weight is [768], expected"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, capsys, key, shape, message):
    state = blank()
    state[f"autoencoder.{key}"] = torch.zeros(shape)
    torch.save(state, tmp_path / "model.pth")
    assert message in refused(capsys, tmp_path, tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.bn1.bias", float("nan"), "encoder.bn1.bias has values that are not finite"),
        ("encoder.bn1.num_batches_tracked", 2**31, "= 2147483648 is no number of batches"),
        ("encoder.bn1.num_batches_tracked", -1, "= -1 is no number of batches"),
        ("encoder.bn1.num_batches_tracked", 0.5, "= 0.5 is no number of batches"),
        ("encoder.bn1.num_batches_tracked", float("nan"), "= nan is no number of batches"),
    ],
)
def test_impossible_values(tmp_path, capsys, key, value, message):
    state = blank()
    shape = state[f"autoencoder.{key}"].shape
    state[f"autoencoder.{key}"] = torch.full(shape, value)
    torch.save(state, tmp_path / "model.pth")
    assert message in refused(capsys, tmp_path, tmp_path / "model.pth")


class Evil:
    """Unpickling an instance creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def shortened(path):
    torch.save({"encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:-5000])


def text_in_a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def flipped(path):
    torch.save(blank() | {"autoencoder.encoder.conv1.weight": torch.ones(64, 3, 7, 7)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\0\0\x80\x3f" * 100) + 202] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("epoch,loss\n1,0.5\n"), "is no PyTorch file, or damaged"),
        (shortened, "is no PyTorch file, or damaged"),
        (text_in_a_zip, "is no PyTorch file, or damaged"),
        (flipped, "does not match: damaged"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no PyTorch file, or damaged"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "needs the code torch.nn.modules"),
        (lambda path: torch.save({}, path), "holds nothing, no tensors"),
        (lambda path: torch.save([torch.zeros(1)], path), "is a list; expected the state dict"),
        (lambda path: torch.save({"epoch": 1, "lr": 0.1}, path), "holds epoch, lr, no tensors"),
        (
            lambda path: torch.save({"state_dict": {"a": torch.ones(1), "b": 2}}, path),
            "'b' is int, no tensor",
        ),
        (
            lambda path: torch.save({"model": {"a": torch.ones(1)}, "state_dict": {}}, path),
            "holds several state dicts, state_dict, model",
        ),
        (
            lambda path: torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, path),
            "the same: a and module.a",
        ),
        (lambda path: torch.jit.script(torch.nn.ReLU()).save(path), "is a TorchScript program"),
        (lambda path: torch.save({"fc.weight": torch.ones(1)}, path), "unknown fc.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_damaged_and_other_files(tmp_path, capsys, make, message):
    path = tmp_path / "model.pth"
    make(path)
    error = refused(capsys, tmp_path, path)
    assert message in error and str(path) in error


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_never_executed(tmp_path, capsys, new_format):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    torch.save(
        {"a": torch.ones(1), "b": Evil(marker)}, path, _use_new_zipfile_serialization=new_format
    )
    error = refused(capsys, tmp_path, path)
    assert "never executed" in error and "torch.save(model.state_dict(), FILE)" in error
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # unpickling it would create the file


def test_damaged_safetensors(tmp_path, capsys, out):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 100)
    assert "damaged" in refused(capsys, tmp_path, path)
    assert "is converted already" in refused(capsys, tmp_path, out / MODEL_FILE)


def test_views_larger_than_what_the_file_holds_are_refused(tmp_path, capsys):
    """Stride zero: one number in the file expands in memory to the whole shape."""
    state, key = blank(), "autoencoder.decoder.0.weight"
    state[key] = torch.zeros(1).expand(state[key].shape)
    rows, columns = state[key].shape
    torch.save(state, tmp_path / "model.pth")
    error = refused(capsys, tmp_path, tmp_path / "model.pth")
    assert f"'{key}' of shape [{rows}, {columns}] takes {4 * rows * columns:,} bytes" in error
    assert "and the file holds only 4" in error


def test_dictionary_that_holds_itself_is_refused(tmp_path, capsys):
    state = {}
    state["model"] = state
    torch.save(state, tmp_path / "model.pth")
    assert "model in it holds itself; expected" in refused(capsys, tmp_path, tmp_path / "model.pth")


def test_named_pipe_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "model.pth")
    error = refused(capsys, tmp_path, tmp_path / "model.pth")
    assert "model.pth is a named pipe, no regular file" in error


def test_inputs_are_not_overwritten(out, tmp_path, capsys):
    model, before = tmp_path / "model", (out / MODEL_FILE).read_bytes()
    shutil.copytree(out, model)
    source = str(model / MODEL_FILE)
    assert main([source, "--out", str(model), "--overwrite"]) == 2
    assert "could be overwritten" in one_line(capsys)
    assert main(["--to_torch", str(model), "--out", source, "--overwrite"]) == 2
    assert "which is read" in one_line(capsys)
    assert (model / MODEL_FILE).read_bytes() == before


def test_outputs_are_not_replaced_without_a_flag(tmp_path, capsys, monkeypatch):
    source, target = tmp_path / "model.pth", tmp_path / "out"
    torch.save(blank(), source)
    target.mkdir()
    monkeypatch.chdir(target)
    assert main([str(source), "--out", "."]) == 0  # an empty folder counts as no output
    assert (target / MODEL_FILE).exists()
    capsys.readouterr()
    assert main([str(source), "--out", str(target)]) == 2
    assert "--overwrite replaces it" in one_line(capsys)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    assert main([str(source), "--out", str(other), "--overwrite"]) == 2
    assert "is a folder of something else" in one_line(capsys)
    assert main([str(source), "--out", str(other / "notes.txt")]) == 2
    assert "is a file; expected a folder" in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "other", "out"]


def test_full_disk_keeps_existing_files(source, tmp_path, capsys):
    """A limit on file sizes simulates the full disk."""
    small, target = tmp_path / "model.pth", tmp_path / "out"
    torch.save(blank(), small)
    assert main([str(small), "--out", str(target)]) == 0
    before = variables_hash(load_saved(target).variables)
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, limits[1]))
    try:
        assert main([str(source), "--out", str(target), "--overwrite"]) == 1
        error = one_line(capsys)
        assert main(["--to_torch", str(target), "--out", str(tmp_path / "back.pth")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in error and "free some disk space" in error
    assert "back.pth: cannot be written" in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "out"]
    assert variables_hash(load_saved(target).variables) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either MODEL.pth"),
        (["a.pth", "--to_torch", "b", "--out", "c"], "give either MODEL.pth"),
        (["a.pth"], "--out is missing"),
        (["--to_torch", "a", "--out", "b.pth", "--verify"], "do not apply to --to_torch"),
        (["a.pth", "--out", "b", "--latent_size", "350"], "unrecognized arguments"),
        (["--to_torch", ".", "--out", "."], "is a folder; expected the name of a file"),
    ],
)
def test_wrong_usage(argv, message, capsys):
    assert main(argv) == 2
    assert message in one_line(capsys)


def test_other_models_have_no_pytorch_module(out, tmp_path, capsys):
    config = get_config("smoke")
    other = dataclasses.replace(
        load_saved(out),
        config=config,
        variables=jax.jit(lambda: initial_variables(config))(),
        latent_mean=np.zeros(8, np.float32),
        latent_var=np.ones(8, np.float32),
    )
    write_safetensors(tmp_path / "other" / MODEL_FILE, other)
    assert main(["--to_torch", str(tmp_path / "other"), "--out", str(tmp_path / "model.pth")]) == 1
    assert "architecture 'autoencoder_kl'" in one_line(capsys)
    (tmp_path / "other" / MODEL_FILE).unlink()
    assert main(["--to_torch", str(tmp_path / "other"), "--out", str(tmp_path / "model.pth")]) == 1
    assert "no model" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_empty_state_lists_all_problems():
    with pytest.raises(DataError, match="332 problems"):
        convert.check("empty", {}, FundusVAE())


def test_help_needs_no_pytorch_and_a_missing_pytorch_is_named():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vae.convert_torch_checkpoint import main\n"
        "import json\n"
        "code = main(['model.pth', '--out', 'out'])\n"
        "print(json.dumps([code, 'jax' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2, False]
    assert done.stderr.strip().endswith("`pip install 'fundus-vae[convert]'`")
    command = [sys.executable, "-m", "vae.convert_torch_checkpoint", "--help"]
    assert (
        "--to_torch" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
