"""Datasets on the devices give the same batches as datasets that are read tile by tile."""

import numpy as np
import pytest

from vae.configs import fundus256
from vae.data.errors import DataError
from vae.data.in_memory import whole_split
from vae.data.pipeline import open_dataset, train_batches
from vae.sharding import local_rows, make_mesh
from vae.tasks.device_dataset import DeviceDataset

pytestmark = pytest.mark.usefixtures("eight_devices")


@pytest.fixture(scope="module")
def dataset(small_data):
    return open_dataset(small_data)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_batches_equal_those_read_from_disk(dataset, balance):
    config = fundus256.get_config("smoke")
    config.seed, config.batch_size, config.data.balance = 5, 16, balance
    mesh = make_mesh()
    tiles = DeviceDataset(config, dataset, mesh)
    assert tiles.images.shape == (dataset.counts["train"], 64, 64, 3)
    assert tiles.images.sharding.is_fully_replicated
    rows = local_rows(mesh, 16)
    # From the middle of one epoch into the next.
    start = dataset.counts["train"] // 16 - 1
    options = {"size": 64, "seed": 5, "batch_size": 16, "balance": balance}
    read = train_batches(dataset, **options, rows=rows, start_step=start)
    for expected, batch in zip(read, tiles.batches(rows, start), strict=False):
        assert batch["tile_id"].tolist() == expected["tile_id"].tolist()
        taken = tiles.take(batch["number"])
        np.testing.assert_array_equal(taken, expected["image"])
        assert not taken.sharding.is_fully_replicated
        start += 1
        if start * 16 > 2 * dataset.counts["train"]:
            break


def test_a_subset_of_rows_is_of_the_same_batch(dataset):
    images, tile_ids = whole_split(dataset, size=64)
    config = fundus256.get_config("smoke")
    tiles = DeviceDataset(config, dataset, make_mesh())
    whole, part = (next(tiles.batches(rows, 3)) for rows in (range(8), [2, 5]))
    np.testing.assert_array_equal(part["number"], whole["number"][[2, 5]])
    assert tile_ids[part["number"]].tolist() == part["tile_id"].tolist()
    np.testing.assert_array_equal(images, tiles.images)


def test_tiles_of_another_size_are_refused(dataset):
    with pytest.raises(DataError, match="64x64; tiles .* must be 32x32; set --config"):
        whole_split(dataset, size=32)
