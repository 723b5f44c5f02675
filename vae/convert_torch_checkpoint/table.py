"""Which entry of the PyTorch state dict is which leaf of ours, and how its axes lie."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vae.models import FundusVAE

# What the published file puts before every key.
PREFIX = "autoencoder."


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a PyTorch tensor are ordered in ours.

    Attributes:
      name: For people.
      axes: Of ours, by their number in PyTorch's; empty: the same.
    """

    name: str
    axes: tuple[int, ...] = ()

    def ours(self, array: np.ndarray) -> np.ndarray:
        """A view of PyTorch's array with our axes."""
        return array.transpose(self.axes) if self.axes else array

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """A view of our array with PyTorch's axes."""
        return array.transpose(np.argsort(self.axes)) if self.axes else array

    def shape(self, theirs: tuple[int, ...]) -> tuple[int, ...]:
        """Our shape of PyTorch's; unchanged where the number of axes is wrong already."""
        if len(theirs) != len(self.axes):
            return theirs
        return tuple(theirs[axis] for axis in self.axes)


SAME = Layout("as it is")
CONV = Layout("OIHW -> HWIO", (2, 3, 1, 0))
DENSE = Layout("OI -> IO", (1, 0))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: `source` in the state dict without prefix, `path` in our variables."""

    source: str
    path: str
    layout: Layout = SAME


def table(model: FundusVAE) -> list[Entry]:
    """Every entry of the state dict of a model of these sizes, in PyTorch's order."""
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
    """The last linear layer of the decoder; between two of them lies a ReLU."""
    return f"decoder.{2 * (len(model.head) + 1)}"


@functools.cache
def leaves(model: FundusVAE) -> dict[str, jax.ShapeDtypeStruct]:
    """Our variables by path, `params/encoder/conv1/kernel`: shapes and dtypes alone."""
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
