"""`embed`: known clusters are found, pictures are drawn, and sources are located."""

import csv
import re
import shutil

import numpy as np
import pytest

from vae.cli import main
from vae.data.errors import DataError
from vae.data.images import read_image
from vae.inference import embedding
from vae.inference.embedding_clusters import find_clusters, make_map, typical
from vae.inference.embedding_sources import Sources
from vae.inference.latent_store import Row, open_latents

OUTPUTS = {"embedding.csv", "vectors.npz", "map.png", "clusters.png"}


@pytest.fixture(scope="module")
def latents(tiny_data, finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "all.zarr"
    assert main(["encode", str(tiny_data), "--model", str(finished[1]), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def blobs():
    """Three well separated blobs of 100, 60 and 40 vectors."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [100, 60, 40])
    return rng.normal(0, 1, (200, 5)) + 12 * np.eye(5)[truth], truth


@pytest.mark.parametrize("method", ["gmm", "kmeans"])
def test_known_clusters_are_found(blobs, method):
    vectors, truth = blobs
    found = find_clusters(vectors, method)
    np.testing.assert_array_equal(found.labels, truth)  # numbered by size
    assert found.count == 3 and "3 clusters, best of 2 to 12" in found.note
    again = find_clusters(vectors, method)
    np.testing.assert_array_equal(again.distances, found.distances)
    assert find_clusters(vectors, method, count=2).count == 2


def test_typical_tiles_are_central_and_of_many_photographs(blobs):
    vectors, truth = blobs
    found = find_clusters(vectors, count=3)
    names = np.array([f"p{i % 2}" for i in range(200)])
    rows = [
        Row(i, str(i), photograph=names[i], origin=(0, 10 * (i // 2)), size=(25, 25))
        for i in range(200)
    ]
    ranks = typical(found, rows, 4)
    for cluster in range(3):
        chosen = sorted(np.flatnonzero((ranks > 0) & (truth == cluster)), key=lambda i: ranks[i])
        assert [ranks[i] for i in chosen] == [1, 2, 3, 4]
        members = np.flatnonzero(truth == cluster)
        assert found.distances[chosen[0]] == found.distances[members].min()
        assert names[chosen[0]] != names[chosen[1]]
        for photograph in ("p0", "p1"):
            x = sorted(rows[i].origin[1] for i in chosen if names[i] == photograph)
            assert (np.diff(x) >= 25).all()  # share no pixel


def test_components_match_those_of_the_features():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (50, 3)) @ rng.normal(0, 1, (3, 8)) * 10 + 4
    features = np.concatenate([features, np.ones((50, 1))], axis=1)  # a constant feature
    vectors = embedding.principal_components(features)
    assert vectors.values.shape == (50, 9) and vectors.explained[:3].sum() > 0.999
    scaled = (features - vectors.mean) / vectors.scale
    np.testing.assert_allclose(vectors.values @ vectors.components, scaled, atol=1e-4)
    few = embedding.principal_components(features, most=4)
    components = few.project(features)
    covariance = components.T @ components / 50
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)
    assert components.shape == (50, 4) and (np.diff(np.diag(covariance)) < 0).all()


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_a_map_keeps_neighbours_together(blobs, kind):
    vectors, truth = blobs
    places, note = make_map(vectors - vectors.mean(axis=0), kind)
    assert places.shape == (200, 2) and not note
    centres = np.array([places[truth == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(axis=1)
    assert (nearest == truth).mean() > 0.95
    np.testing.assert_array_equal(make_map(vectors - vectors.mean(axis=0), kind)[0], places)


def test_embed(latents, tmp_path, capsys):
    command = [
        "embed",
        str(latents),
        "--out",
        str(tmp_path / "a"),
        "--clusters",
        "3",
        "--map",
        "pca",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*OUTPUTS, ".fundus-vae.json"}
    store = open_latents(latents)
    with (tmp_path / "a" / "embedding.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(store) and f"{len(store)} vectors of 16 components" in said
    assert {row["cluster"] for row in table} == {"0", "1", "2"}
    assert sum(row["typical"] == "1" for row in table) == 3
    with np.load(tmp_path / "a" / "vectors.npz") as file:
        assert file["item_id"].tolist() == [row["item_id"] for row in table]
        assert np.isfinite(file["vectors"]).all()
    for name in ("map.png", "clusters.png"):
        assert read_image(tmp_path / "a" / name).std() > 5
    command[3] = str(tmp_path / "b")
    assert main(command) == 0
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_marked_place_is_the_origin_of_the_tile(latents):
    store = open_latents(latents)
    assert "is not below" in Sources(store).missing[0]
    sources = Sources(store, ["/"])
    (group,) = store.groups
    row = group.rows(5, 6)[0]
    source = sources.find(row)
    assert not sources.missing
    left, top, width, height = source.box
    place = source.photograph[round(top) : round(top + height), round(left) : round(left + width)]
    # In the reduced photograph the marked place has the tile's mean colour.
    assert place.size and np.abs(place.mean((0, 1)) - source.image.mean((0, 1))).max() < 12


def test_missing_sources_are_reported_and_the_rest_is_written(
    tiny_tiles, finished, tmp_path, capsys
):
    tiles, out = tmp_path / "tiles", tmp_path / "l.npz"
    tiles.mkdir()
    for number, file in enumerate(sorted(tiny_tiles.rglob("*.png"))[:30]):
        shutil.copy(file, tiles / f"{number}.png")
    assert main(["encode", str(tiles), "--model", str(finished[1]), "--out", str(out)]) == 0
    shutil.rmtree(tiles)
    command = ["embed", str(out), "--out", str(tmp_path / "e"), "--map", "pca"]
    assert main([*command, "--method", "kmeans"]) == 0
    assert f"not shown: {tiles}: no such file" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "e").iterdir()} == {*OUTPUTS, ".fundus-vae.json"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--clusters", "0"], 2, "clusters 0: expected at least 1"),
        (["--clusters", "100000"], 1, "too few for 100000 clusters"),
        (["--typical", "-1"], 2, "typical -1"),
        (["--seed", "-1"], 2, "seed -1"),
        (["--map", "isomap"], 2, "invalid choice: 'isomap'"),
        (["--out", "taken"], 2, "taken cannot be written: it is a file"),
    ],
)
def test_embed_refuses(latents, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    capsys.readouterr()
    assert main(["embed", str(latents), "--out", "e", "--map", "pca", *options]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(f"^error: .*{message}", lines[0]), lines
    assert (tmp_path / "taken").read_text() == "mine" and not (tmp_path / "e").exists()


def test_too_few_or_identical_vectors():
    with pytest.raises(DataError, match="too few for 2 clusters"):
        find_clusters(np.zeros((9, 2)))
    with pytest.raises(DataError, match="all alike"):
        find_clusters(np.zeros((20, 2)))
