"""Quantised latents: exact round trips, reproducible bytes, and their size."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from vae.data.errors import DataError, UsageError
from vae.inference import quantise


def levels(shape, scale, seed=0):
    return np.rint(np.random.default_rng(seed).laplace(0, scale, shape)).astype(np.int32)


@pytest.mark.parametrize(
    "values",
    [
        levels((32, 32, 8), 2.0),
        levels((33, 70, 3), 20.0),  # incomplete blocks
        levels((1, 1, 4), 1.0),
        levels((350,), 3.0),
        levels((16, 16, 2), 5000.0),  # most values are outside the table
        np.zeros((32, 32, 4), np.int32),
        np.array([[[-(2**21) + 1], [2**21 - 1], [-(2**21) + 1]]], np.int32),  # the limit
    ],
)
def test_round_trip_is_exact(values):
    unpacked = quantise.unpack(quantise.pack(values), values.shape)
    np.testing.assert_array_equal(unpacked, values)
    assert unpacked.dtype == np.int32


def test_bytes_are_near_the_entropy():
    # Logistic values with a scale between two of the table: the only losses are 0.1% for the
    # scale, 8 bytes for the coder's state and one byte per channel.
    draws = np.random.default_rng(0).logistic(0, 3.3, (32, 32, 16))
    values = np.rint(draws).astype(np.int32)
    k = np.arange(-400, 401)
    p = 1 / (1 + np.exp(-(k + 0.5) / 3.3)) - 1 / (1 + np.exp(-(k - 0.5) / 3.3))
    ideal = -np.log2(p[values + 400]).sum() / 8
    assert ideal < len(quantise.pack(values)) < 1.003 * ideal + 8 + 16


def test_similar_neighbours_cost_few_bytes():
    ramp = np.cumsum(np.cumsum(levels((32, 32), 1.0), axis=0), axis=1)[..., None]
    shuffled = np.random.default_rng(0).permutation(ramp.ravel()).reshape(ramp.shape)
    assert len(quantise.pack(ramp)) < 0.8 * len(quantise.pack(shuffled))


def test_every_machine_and_version_makes_the_same_bytes():
    # Stores outlive machines and libraries: a change here makes existing stores unreadable.
    values = levels((40, 40, 6), 30.0)
    packed = quantise.pack(values)
    code = (
        "import sys, numpy as np; from vae.inference import quantise;"
        "x = quantise.unpack(sys.stdin.buffer.read(), (40, 40, 6));"
        "sys.stdout.buffer.write(quantise.pack(x))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], input=packed, capture_output=True, check=True
    )
    assert again.stdout == packed
    small = quantise.pack((np.arange(-300, 300).reshape(20, 30, 1) ** 3 // 10**5).astype(np.int32))
    assert hashlib.sha256(small).hexdigest()[:16] == "e2a973ca5199949b"


@pytest.mark.parametrize("damage", ["short", "odd", "long", "empty", "scale"])
def test_damaged_bytes_are_refused(damage):
    packed = quantise.pack(levels((8, 8, 4), 2.0))
    wrong = {
        "short": packed[:-4], "odd": packed[:-1], "long": packed + packed, "empty": b"",
        "scale": b"\x7f" + packed[1:],
    }[damage]  # fmt: skip
    with pytest.raises(DataError, match="damaged"):
        quantise.unpack(wrong, (8, 8, 4))


def test_steps_follow_the_posterior():
    log_var = np.broadcast_to(np.log([0.01, 4.0]).astype(np.float32), (3, 4, 4, 2))
    steps = quantise.channel_steps(log_var, 3.0)
    np.testing.assert_allclose(steps, [0.3, 6.0], rtol=1e-6)
    mean = np.random.default_rng(0).normal(0, 2, (4, 4, 2)).astype(np.float32)
    error = quantise.dequantise(quantise.quantise(mean, steps), steps) - mean
    assert (np.abs(error) <= steps / 2 * (1 + 1e-5)).all() and np.abs(error).max() > 0.1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_non_finite_latents_are_refused(value):
    with pytest.raises(DataError, match="not finite or beyond"):
        quantise.quantise(np.array([0.0, value], np.float32), np.ones(2, np.float32))


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), 1e3])
def test_absurd_steps_are_refused(step):
    with pytest.raises(UsageError, match="expected 0.01 to 100"):
        quantise.check_step(step)
