"""The mapping from entries of the PyTorch state dict to Flax leaves, with the order of axes."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vae.models import FundusVAE

# Prefix of every key in the published file.
PREFIX = "autoencoder."


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of a PyTorch tensor's axes in the Flax array.

    Attributes:
      name: Name in the printed table.
      axes: For each Flax axis, the PyTorch axis; empty for the same order.
    """

    name: str
    axes: tuple[int, ...] = ()

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of PyTorch's array with the axes of Flax."""
        return array.transpose(self.axes) if self.axes else array

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of the Flax array with the axes of PyTorch."""
        return array.transpose(np.argsort(self.axes)) if self.axes else array

    def shape(self, theirs: tuple[int, ...]) -> tuple[int, ...]:
        """Converts PyTorch's shape to Flax's; unchanged if the number of axes does not fit."""
        if len(theirs) != len(self.axes):
            return theirs
        return tuple(theirs[axis] for axis in self.axes)


SAME = Layout("as it is")
CONV = Layout("OIHW -> HWIO", (2, 3, 1, 0))
DENSE = Layout("OI -> IO", (1, 0))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: `source` in the state dict without prefix, `path` in the Flax variables."""

    source: str
    path: str
    layout: Layout = SAME


def table(model: FundusVAE) -> list[Entry]:
    """Returns all entries of the state dict of a model of these sizes, in PyTorch's order."""
    rows = _conv("encoder.conv1", "encoder/conv1") + _norm("encoder.bn1", "encoder/bn1")
    for stage, depth in enumerate(model.stages, start=1):
        for block in range(depth):
            source, path = f"encoder.layer{stage}.{block}", f"encoder/layer{stage}_{block}"
            for part in (1, 2, 3):
                rows += _conv(f"{source}.conv{part}", f"{path}/conv{part}")
                rows += _norm(f"{source}.bn{part}", f"{path}/bn{part}")
            if block == 0:
                rows += _conv(f"{source}.downsample.0", f"{path}/downsample_conv")
                rows += _norm(f"{source}.downsample.1", f"{path}/downsample_bn")
    for i in range(len(model.head) + 1):
        rows += _dense(f"encoder.fc.{i}", f"encoder/fc{i}")
    for i in range(len(model.head) + 1):
        rows += _dense(f"decoder.{2 * i}", f"decoder/fc{i}")
    last = to_image_source(model)
    rows.append(Entry(f"{last}.weight", "params/decoder/to_image/weight"))
    rows.append(Entry(f"{last}.bias", "params/decoder/to_image/bias"))
    return rows


def to_image_source(model: FundusVAE) -> str:
    """Returns the key of the decoder's last linear layer; a ReLU follows each of the others."""
    return f"decoder.{2 * (len(model.head) + 1)}"


@functools.cache
def leaves(model: FundusVAE) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the Flax variables by path, `params/encoder/conv1/kernel`."""
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return flax.traverse_util.flatten_dict(variables, sep="/")


def _conv(source: str, path: str) -> list[Entry]:
    return [Entry(f"{source}.weight", f"params/{path}/kernel", CONV)]


def _norm(source: str, path: str) -> list[Entry]:
    return [
        Entry(f"{source}.weight", f"params/{path}/scale"),
        Entry(f"{source}.bias", f"params/{path}/bias"),
        Entry(f"{source}.running_mean", f"batch_stats/{path}/mean"),
        Entry(f"{source}.running_var", f"batch_stats/{path}/var"),
        Entry(f"{source}.num_batches_tracked", f"batch_stats/{path}/count"),
    ]


def _dense(source: str, path: str) -> list[Entry]:
    return [
        Entry(f"{source}.weight", f"params/{path}/kernel", DENSE),
        Entry(f"{source}.bias", f"params/{path}/bias"),
    ]
