"""The evaluation of a split: metrics, table, files, pictures, whole photographs."""

import csv
import dataclasses
import json
import math
import pathlib
import socket
import subprocess
import sys

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from vae import metrics
from vae.data.errors import DataError
from vae.data.manifest import PhotographRow
from vae.evaluation import (
    evaluate,
    format_table,
    results,
    tile_pictures,
    whole_photographs,
    write_results,
    write_tiles,
)
from vae.evaluation.aggregate import patient_intervals
from vae.evaluation.jpeg import encode_jpeg
from vae.evaluation.photographs import read_as_tiled
from vae.inference.reconstruct import write_picture
from vae.models.pca import PCA, fit_pca
from vae.models.posterior import Posterior

SIDE, FACTOR, CHANNELS = 32, 4, 6
TILES = 21  # not a multiple of the batch size
ROOT = pathlib.Path(__file__).resolve().parents[2]

traces = []


class LinearCodec(nn.Module):
    """A PCA codec with the interface of a model."""

    tile_size = None
    downsample = FACTOR
    encoder_halo = decoder_halo = 0

    @nn.compact
    def _pca(self) -> PCA:
        sizes = {"mean": (48,), "components": (48, CHANNELS), "sd": (CHANNELS,), "scale": ()}
        ones = nn.initializers.ones
        return PCA(**{name: self.param(name, ones, size) for name, size in sizes.items()})

    def encode(self, x: jax.Array) -> Posterior:
        traces.append(x.shape)
        return self._pca().encode(x)

    def decode(self, z: jax.Array) -> jax.Array:
        return self._pca().decode(z)


def _split(count=TILES, side=SIDE, seed=0):
    """Tiles of 7 photographs, 4 patients and 2 labels: smooth waves with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((side, side))
    waves = [np.sin(rows / a + columns / b + c) for a, b, c in rng.uniform(2, 9, (3 * count, 3))]
    images = 120 + 70 * np.stack(waves).reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    images += rng.normal(0, 1, images.shape) * rng.uniform(0, 4, (count, 1, 1, 1))
    number = np.arange(count)
    fov = np.ones((count, side, side), bool)
    fov[1, :, :9] = False
    fov[4, :, 10:] = False  # ten columns are too few for a window
    fov[6] = False
    return {
        "image": np.round(images).clip(0, 255).astype(np.uint8),
        "fov": fov,
        "tile_id": np.array([f"tile é{i}" for i in number]),
        "photograph": np.array([f"photo{i % 7}" for i in number]),
        "patient": np.array([f"p{i % 7 // 2}" for i in number]),
        "label": np.array(["even" if i % 7 < 4 else "odd" for i in number]),
    }


def _batches(split, batch=8):
    """Returns the split in batches like those of the pipeline; the last one is padded."""
    count = len(split["image"])
    for start in range(0, count, batch):
        here = {key: values[start : start + batch] for key, values in split.items()}
        missing = batch - len(here["image"])
        for key, values in here.items():
            fill = np.zeros((missing, *values.shape[1:]), values.dtype)
            here[key] = np.concatenate([values, fill])
        yield here | {"valid": np.arange(batch) < batch - missing}


@pytest.fixture(scope="module")
def mesh():
    devices = math.gcd(len(jax.devices()), 8)
    fsdp = 2 if devices > 1 else 1
    return jax.make_mesh(
        (devices // fsdp, fsdp),
        ("data", "fsdp"),
        (jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


@pytest.fixture(scope="module")
def split():
    return _split()


@pytest.fixture(scope="module")
def pca(split):
    return fit_pca([split["image"]], CHANNELS, FACTOR)


@pytest.fixture(scope="module")
def variables(pca, mesh):
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {field.name: getattr(pca, field.name) for field in dataclasses.fields(pca)}
    return jax.device_put({"params": params}, whole)


@pytest.fixture(scope="module")
def evaluation(split, pca, variables, mesh):
    return evaluate(
        LinearCodec(), variables, lambda: _batches(split), mesh=mesh, pca=pca, scale=0.5
    )


def _row(evaluation, name):
    return next(row for row in evaluation.rows if row["name"] == name)


def test_rows_and_their_sizes(evaluation):
    names = ["mean_colour", "bicubic_x4", "pca", "pca_sampled", "jpeg", "model", "model_sampled"]
    assert [row["name"] for row in evaluation.rows] == names
    latents = (SIDE // FACTOR) ** 2 * CHANNELS
    sizes = {
        row["name"]: (row["latents"], row["ratio"], row["bytes_fp16"]) for row in evaluation.rows
    }
    assert sizes["mean_colour"] == (3, SIDE * SIDE, None)
    assert sizes["bicubic_x4"] == (SIDE * SIDE * 3 // 16, 16, None)
    assert sizes["jpeg"] == (None, None, None)
    for name in ("pca", "pca_sampled", "model", "model_sampled"):
        assert sizes[name] == (latents, SIDE * SIDE * 3 / latents, 2 * latents)
    assert _row(evaluation, "mean_colour")["bytes"] == 3
    for row in evaluation.rows:
        for metric in ("ssim", "psnr"):
            low, high = row["interval"][metric]
            assert low <= row[metric] <= high


def test_model_metrics_are_those_of_8_bit_reconstructions(evaluation, split, pca):
    """Compares with a plain computation per tile; the codec is PCA, so both rows are equal."""
    kept = [i for i in range(TILES) if i not in (4, 6)]
    images, fov = split["image"][kept], split["fov"][kept]
    posterior = pca.encode(metrics.to_float(images))
    output = np.asarray(pca.decode(posterior.mean))
    rounded = np.clip(np.round((output + 1) * 127.5), 0, 255)
    ssim = metrics.masked_ssim(images / 255.0, rounded / 255.0, fov)
    errors = [np.square(rounded[i] - images[i])[fov[i]].mean() for i in range(len(kept))]
    psnr = 10 * np.log10(255**2 / np.array(errors))
    model = _row(evaluation, "model")
    assert model["ssim"] == pytest.approx(float(ssim.mean()), abs=1e-5)
    assert model["psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert model["bytes"] == pytest.approx(float(posterior.kl().mean()) / math.log(2) / 8, rel=1e-5)
    assert evaluation.means["psnr_unrounded"] > model["psnr"]
    for name in ("", "_sampled"):
        ours, theirs = _row(evaluation, "model" + name), _row(evaluation, "pca" + name)
        assert ours["ssim"] == pytest.approx(theirs["ssim"], abs=1e-5)
        assert ours["psnr"] == pytest.approx(theirs["psnr"], abs=1e-3)
    assert _row(evaluation, "model_sampled")["psnr"] < model["psnr"]


def test_tiles_without_windows_are_left_out_and_counted(evaluation):
    assert evaluation.counts == {"tiles": 19, "left_out": 2, "patients": 4, "photographs": 7}
    left_out = np.isin(np.arange(TILES), (4, 6))
    np.testing.assert_array_equal(evaluation.tiles["windows"] == 0, left_out)
    for name in ("ssim", "psnr", "ssim_sample", "psnr_sample", "kl_bits"):
        np.testing.assert_array_equal(np.isnan(evaluation.tiles[name]), left_out)
    assert evaluation.tiles["windows"][:2].tolist() == [22 * 22, 22 * (22 - 9)]


def test_labels_average_to_the_whole(evaluation):
    assert [(row["label"], row["patients"]) for row in evaluation.labels] == [
        ("even", 2),
        ("odd", 2),
    ]
    tiles = [row["tiles"] for row in evaluation.labels]
    assert sum(tiles) == 19
    for metric in ("ssim", "psnr"):
        mean = np.average([row[metric] for row in evaluation.labels], weights=tiles)
        assert mean == pytest.approx(_row(evaluation, "model")[metric])


def test_metrics_do_not_depend_on_the_batches(evaluation, split, variables, mesh):
    other = evaluate(
        LinearCodec(),
        variables,
        lambda: _batches(split, 16),
        mesh=mesh,
        baselines=False,
        jpeg=False,
    )
    assert [row["name"] for row in other.rows] == ["model", "model_sampled"]
    np.testing.assert_array_equal(other.tiles["tile_id"], split["tile_id"])
    # This includes samples, whose noise depends on the tile's position in the split. A float32
    # sum in another order may round one of 3,072 values the other way.
    for name in ("ssim", "psnr", "ssim_sample", "psnr_sample", "kl_bits"):
        np.testing.assert_allclose(other.tiles[name], evaluation.tiles[name], rtol=1e-4)


def test_second_evaluation_neither_compiles_nor_copies_implicitly(split, pca, variables, mesh):
    def run(seed):
        return evaluate(
            LinearCodec(), variables, lambda: _batches(split), mesh=mesh, pca=pca, seed=seed
        )

    first = run(1)
    before = len(traces)
    with jax.transfer_guard("disallow"):
        second = run(2)
    assert len(traces) == before + 1  # the abstract call that counts the latents
    assert _row(second, "model") | {"interval": 0} == _row(first, "model") | {"interval": 0}
    assert _row(second, "model_sampled")["psnr"] != _row(first, "model_sampled")["psnr"]


def test_jpeg_row_is_the_quality_nearest_in_bytes(evaluation, split):
    kept = [i for i in range(TILES) if i not in (4, 6)]
    target = _row(evaluation, "model")["bytes"]
    sizes = {
        quality: np.mean([len(encode_jpeg(split["image"][i], quality)) for i in kept])
        for quality in range(1, 101)
    }
    nearest = min(sizes, key=lambda quality: abs(sizes[quality] - target))
    assert any(f"jpeg: quality {nearest} " in note for note in evaluation.notes)
    assert _row(evaluation, "jpeg")["bytes"] == pytest.approx(sizes[nearest])


def test_an_empty_split_is_refused(split, variables, mesh):
    with pytest.raises(DataError, match="holds no tiles"):
        evaluate(LinearCodec(), variables, lambda: [], mesh=mesh)
    dark = split | {"fov": np.zeros_like(split["fov"])}
    with pytest.raises(DataError, match="none of 21 tiles"):
        evaluate(LinearCodec(), variables, lambda: _batches(dark), mesh=mesh)


def test_intervals_resample_patients():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(40)], 25)
    effect = np.repeat(rng.normal(size=40), 25)
    values = np.stack([effect, 3 + 2 * effect, np.full(1000, 7.0)], axis=1)
    low, high = patient_intervals(values, patients, seed=1)
    # Normal approximation for a mean of 40 numbers; percentiles of 1,000 draws vary by 5%.
    half = 1.96 * effect[::25].std() / math.sqrt(40)
    np.testing.assert_allclose(
        [low[0], high[0]], effect.mean() + np.array([-half, half]), atol=0.05
    )
    np.testing.assert_allclose([low[1], high[1]], 3 + 2 * np.array([low[0], high[0]]))
    assert (low[2], high[2]) == pytest.approx((7, 7))
    assert patient_intervals(values, np.full(1000, "only")) is None


def test_files_and_table(evaluation, split, variables, mesh, tmp_path):
    table = format_table(evaluation)
    assert "19 tiles of 32 x 32 pixels, 7 photographs, 4 patients, scale 0.5" in table
    assert all(row["name"] in table for row in evaluation.rows)
    assert max(map(len, table.splitlines())) <= 110

    write_tiles(tmp_path / "new" / "tiles.csv", evaluation)
    with open(tmp_path / "new" / "tiles.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "tile_id,photograph,patient,label,ssim,psnr,ssim_sample,psnr_sample,kl_bits,windows"
    assert list(rows[0]) == columns.split(",")
    assert [row["tile_id"] for row in rows] == split["tile_id"].tolist()
    assert rows[4]["ssim"] == "" and rows[4]["windows"] == "0"
    assert float(rows[2]["psnr"]) == pytest.approx(evaluation.tiles["psnr"][2], rel=1e-5)

    one = {key: values[:8] for key, values in split.items()} | {"patient": np.full(8, "only")}
    alone = evaluate(
        LinearCodec(), variables, lambda: _batches(one), mesh=mesh, jpeg=False, patients_known=False
    )
    assert "1 patient (unknown)" in format_table(alone)
    path = tmp_path / "results.json"
    write_results(path, results(alone) | {"model": "abc", "loss": float("nan")})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["loss"] is None
    assert all(row["interval"] is None for row in content["rows"])
    assert set(content["rows"][0]) == {
        "name", "ssim", "psnr", "latents", "ratio", "bytes", "bytes_fp16", "interval"
    }  # fmt: skip
    assert content["patients_known"] is False
    assert [child.name for child in tmp_path.iterdir() if child.name.startswith(".")] == []


def test_figure_shows_worst_to_best(evaluation, split, variables, mesh, tmp_path):
    examples = tile_pictures.pick_examples(evaluation, 3)
    ssim = [evaluation.tiles["ssim"][example.row] for example in examples]
    assert ssim[0] == np.nanmin(evaluation.tiles["ssim"])
    assert ssim[1] == np.nanmedian(evaluation.tiles["ssim"])
    assert ssim[2] == np.nanmax(evaluation.tiles["ssim"])
    assert [example.caption.split()[0] for example in examples] == ["worst", "median", "best"]

    originals, outputs = tile_pictures.reconstruct_examples(
        LinearCodec(), variables, lambda: _batches(split), examples, mesh=mesh
    )
    np.testing.assert_array_equal(originals, split["image"][[e.row for e in examples]])
    figure = tile_pictures.reconstruction_figure(originals, outputs, [e.caption for e in examples])
    write_picture(tmp_path / "figures" / "reconstructions.png", figure, {})
    read = np.asarray(Image.open(tmp_path / "figures" / "reconstructions.png"))
    np.testing.assert_array_equal(read, figure)
    # The last row of tiles ends one margin above the bottom; 32 pixels are drawn as 192.
    shown = figure[-8 - 192 : -8 : 6, 8 : 8 + 192 : 6]
    np.testing.assert_array_equal(shown, originals[2])
    difference = figure[-8 - 192 : -8 : 6, 8 + 2 * 200 : 8 + 2 * 200 + 192 : 6]
    expected = 10 * np.abs(originals[2].astype(int) - outputs[2])
    np.testing.assert_array_equal(difference, expected.clip(0, 255))


# --- Whole photographs ---------------------------------------------------------------------------


def _photograph(path, number, image, **changes):
    row = PhotographRow(
        photograph=f"photo{number}", patient=f"p{number // 2}", label="even", split="test",
        path=str(path), height=image.shape[0], width=image.shape[1], scale=1.0,
        fov_x=50.0, fov_y=40.0, fov_radius=38.0, fov_top=5.0, fov_bottom=75.0,
        fov_left=12.0, fov_right=88.0, lost_share=0.0,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def _photograph_pixels(seed=3):
    image = _split(7, 104, seed)["image"][0]
    return np.ascontiguousarray(image[:83, :101])


def test_whole_photographs_and_their_tiles(evaluation, pca, variables, mesh, tmp_path):
    image = _photograph_pixels()
    Image.fromarray(image).save(tmp_path / "a.png")
    small = np.asarray(Image.fromarray(image[:60, :60]))
    Image.fromarray(small).save(tmp_path / "small.png")
    rows = [
        _photograph(tmp_path / "a.png", 0, image),
        _photograph(tmp_path / "gone.png", 1, image),
        _photograph(tmp_path / "small.png", 2, image),
        _photograph(tmp_path / "a.png", 99, image),  # of another split
    ]
    whole = whole_photographs(LinearCodec(), variables, rows, evaluation, mesh=mesh, window=32)
    (row,) = whole.rows
    assert (row["photograph"], row["height"], row["width"], row["tiles"]) == ("photo0", 83, 101, 3)
    of_photograph = evaluation.tiles["photograph"] == "photo0"
    assert row["tile_ssim"] == pytest.approx(evaluation.tiles["ssim"][of_photograph].mean())

    mask = rows[0].fov.mask(83, 101)
    black = np.where(mask[..., None], image, 0).astype(np.uint8)
    padded = np.pad(black, ((0, 1), (0, 3), (0, 0)), mode="edge")
    output = metrics.to_uint8(pca.decode(pca.encode(metrics.to_float(padded[None])).mean))
    output = np.asarray(output)[:, :83, :101]
    ssim = float(metrics.masked_ssim(black[None] / 255.0, output / 255.0, mask[None])[0])
    psnr = float(metrics.masked_psnr(black[None], output, mask[None])[0])
    assert row["ssim"] == pytest.approx(ssim, abs=1e-5)
    assert row["psnr"] == pytest.approx(psnr, abs=1e-3)

    (note,) = whole.notes
    assert note.startswith("2 of 3 whole photographs are not measured")
    assert "gone.png" in note and "make-tiles" in note
    assert "mean of 1 whole photograph " in format_table(evaluation, whole)
    assert results(evaluation, whole)["photographs"]["means"]["ssim"] == row["ssim"]


def test_missing_photographs_give_a_note(evaluation, variables, mesh):
    whole = whole_photographs(LinearCodec(), variables, [], evaluation, mesh=mesh)
    assert whole.rows == [] and whole.means == {}
    assert "photographs.csv" in whole.notes[0]
    assert "photographs.csv" in format_table(evaluation, whole)


@pytest.mark.parametrize(("scale", "method"), [(0.5, cv2.INTER_AREA), (1.5, cv2.INTER_CUBIC)])
def test_photographs_are_scaled_as_their_tiles_were(scale, method, tmp_path):
    image = _photograph_pixels()
    Image.fromarray(image).save(tmp_path / "a.png")
    size = (round(101 * scale), round(83 * scale))
    expected = cv2.resize(image, size, interpolation=method)
    read = read_as_tiled(_photograph(tmp_path / "a.png", 0, expected, scale=scale))
    np.testing.assert_array_equal(read, expected)


# --- Two processes -------------------------------------------------------------------------------


@pytest.mark.soak
def test_two_processes_agree_with_one(split, evaluation, variables, mesh, tmp_path):
    """Two processes with two devices each; the second process holds the first rows."""
    image = _photograph_pixels()
    for name in ("both.png", "only0.png"):
        Image.fromarray(image).save(tmp_path / name)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_evaluate as t; t.run_process()"
    arguments = [str(pathlib.Path(__file__).parent), str(port), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, str(index)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        logs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    both = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    assert both[0]["tiles"] == both[1]["tiles"]
    assert both[0]["rows"] == both[1]["rows"]
    assert both[0]["tiles"]["tile_id"] == split["tile_id"].tolist()
    for name in ("ssim", "psnr", "ssim_sample", "psnr_sample", "kl_bits"):
        theirs = np.array(both[0]["tiles"][name], np.float64)
        np.testing.assert_allclose(theirs, evaluation.tiles[name], rtol=1e-4)
    jpeg = next(row for row in both[0]["rows"] if row["name"] == "jpeg")
    assert jpeg["bytes"] == _row(evaluation, "jpeg")["bytes"]
    assert jpeg["ssim"] == pytest.approx(_row(evaluation, "jpeg")["ssim"], abs=1e-5)
    for index, content in enumerate(both):
        assert [row["photograph"] for row in content["photographs"]["rows"]] == ["photo0"]
        reason = "cannot be read by another process" if index == 0 else "only1.png"
        assert reason in content["photographs"]["notes"][0]


def run_process():
    """Runs in each of the two processes of the test above."""
    _, _, port, folder, index = sys.argv
    folder, index = pathlib.Path(folder), int(index)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 4), ("data", "fsdp"), axes, devices=jax.devices()[::-1])

    split = _split()
    pca = fit_pca([split["image"]], CHANNELS, FACTOR)
    spread = {"components": jax.sharding.PartitionSpec("fsdp")}
    params = {}
    for field in dataclasses.fields(pca):
        value = np.asarray(getattr(pca, field.name))
        spec = spread.get(field.name, jax.sharding.PartitionSpec())
        sharding = jax.sharding.NamedSharding(mesh, spec)
        params[field.name] = jax.make_array_from_callback(
            value.shape, sharding, lambda i, value=value: value[i]
        )
    rows = slice(4, 8) if index == 0 else slice(0, 4)

    def batches():
        for batch in _batches(split):
            yield {key: values[rows] for key, values in batch.items()}

    variables = {"params": params}
    codec = LinearCodec()
    evaluation = evaluate(codec, variables, batches, mesh=mesh, pca=pca, scale=0.5)
    image = _photograph_pixels()
    photographs = [
        _photograph(folder / "both.png", 0, image),
        _photograph(folder / f"only{index}.png", 1, image),
    ]
    whole = whole_photographs(codec, variables, photographs, evaluation, mesh=mesh, window=32)
    originals, _ = tile_pictures.reconstruct_examples(
        codec, variables, batches, tile_pictures.pick_examples(evaluation, 2), mesh=mesh
    )
    np.testing.assert_array_equal(
        originals, split["image"][[e.row for e in tile_pictures.pick_examples(evaluation, 2)]]
    )
    write_results(
        folder / f"{index}.json", results(evaluation, whole) | {"tiles": evaluation.tiles}
    )
    jax.distributed.shutdown()
