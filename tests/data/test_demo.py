import collections

import numpy as np
from skimage import data as bundled

from vae.data.demo import retina_tiles, synthetic_tiles
from vae.data.images import read_image
from vae.data.manifest import read_manifest


def test_retina_regions_share_no_pixel(tmp_path):
    tiles = retina_tiles(tmp_path, progress=False)
    left, right = (
        read_image(tmp_path / f"photographs/retina/{name}.png") for name in ("left", "right")
    )
    np.testing.assert_array_equal(np.concatenate([left, right], axis=1), bundled.retina())
    rows = list(read_manifest(tiles / "manifest.csv"))
    counts = collections.Counter((row.photograph, row.split) for row in rows)
    assert set(counts) == {("retina/left", "train"), ("retina/right", "test")}
    assert counts["retina/left", "train"] >= 150
    assert counts["retina/right", "test"] >= 20
    # Regression: the two arcs were fitted as one disc.
    circles = {row.photograph: row.fov for row in rows}
    assert abs(circles["retina/left"].x - circles["retina/right"].x - left.shape[1]) < 4
    assert abs(circles["retina/left"].radius - circles["retina/right"].radius) < 4
    written = (tiles / "manifest.csv").stat().st_mtime_ns
    assert retina_tiles(tmp_path, progress=False) == tiles
    assert (tiles / "manifest.csv").stat().st_mtime_ns == written


def test_synthetic_tiles_have_every_split(tmp_path):
    tiles = synthetic_tiles(tmp_path, tile=32)
    rows = list(read_manifest(tiles / "manifest.csv"))
    counts = collections.Counter(row.split for row in rows)
    assert counts["train"] >= 100
    assert min(counts["val"], counts["test"]) >= 20
    assert read_image(tiles / rows[0].tile).shape == (32, 32, 3)
    assert synthetic_tiles(tmp_path, tile=32) == tiles
