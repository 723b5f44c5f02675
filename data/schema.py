"""Checks of what is read back from files: JSON values, and arrays in .npy form.

A kind of value is described by

    Kind        words for errors and a test, for example TEXT, FLAG, `whole(1, 100)`
    None        null
    (a, b)      one of these kinds
    [a]         a list of values of a kind
    [a, b]      a list of two values of these kinds
    {str: a}    an object with any keys and values of a kind
    {"k": a}    an object with these keys; it may have others
"""

import ast
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vae.data.errors import DataError, one_line

_SHOWN = 60  # characters of a wrong value in an error
_NPY_HEADER = 1 << 12  # bytes, far above those of the headers that NumPy writes


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values that pass a test; `words` describe them in errors."""

    words: str
    test: Callable[[Any], bool]


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = {str: Kind("any value", lambda value: True)}


def whole(low: int = 0, high: int = 1 << 40) -> Kind:
    """Returns the kind of integers from `low` to `high`."""
    return Kind(
        f"an integer from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float = -1e30, high: float = 1e30) -> Kind:
    """Returns the kind of finite numbers from `low` to `high`."""
    return Kind(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and low <= value <= high,
    )


def one_of(*values: Any) -> Kind:
    """Returns the kind of these values."""
    return Kind(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def parse_json(content: str | bytes, source: Any, kind: Any = OBJECT, *, remedy: str) -> Any:
    """Parses JSON and checks its values.

    Args:
      content: The JSON, UTF-8 if bytes. NaN and infinite numbers are refused.
      source: The file, for errors.
      kind: See the docstring of the module.
      remedy: Ends the error, for example "build it again".

    Raises:
      DataError: It is no JSON, nested too deeply, or a value is of another kind; names the file,
        the key, the value and what was expected.
    """
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: damaged ({one_line(error)}); {remedy}") from error
    return check(value, source, kind, remedy=remedy)


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Returns JSON values with their checksum, `crc`, for `parse_sealed`."""
    return values | {"crc": json_crc(values)}


def parse_sealed(content: str | bytes, source: Any, kind: Any, *, remedy: str) -> dict[str, Any]:
    """Parses the JSON of `sealed` values; arguments and errors as in `parse_json`.

    Raises:
      DataError: Also if the checksum is another one.
    """
    values = parse_json(content, source, kind, remedy=remedy)
    crc = values.pop("crc", None)
    if crc != json_crc(values):
        raise DataError(f"{source}: damaged (its checksum differs); {remedy}")
    return values


def check(value: Any, source: Any, kind: Any, *, remedy: str) -> Any:
    """Returns a value that is of a kind; arguments and errors as in `parse_json`."""
    if problem := _problem(value, kind, ""):
        raise DataError(f"{source}: {problem}; {remedy}")
    return value


def json_crc(value: Any) -> int:
    """Returns the CRC-32 of a value as JSON with sorted keys; lists and tuples are the same."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def read_npy(content: bytes, source: Any, dtype: Any, shape: Sequence[int], *, remedy: str):
    """Returns the array in the bytes of a .npy file, read-only.

    Args:
      content: The whole file.
      source: The file, for errors.
      dtype: Expected dtype.
      shape: Expected shape; -1 accepts any length of the first axis.
      remedy: Ends the error.

    Raises:
      DataError: The bytes are no .npy file, or their dtype, shape or size is another one.
    """
    try:
        length = int.from_bytes(content[8:10], "little")
        if content[:8] != b"\x93NUMPY\x01\x00" or length > _NPY_HEADER:
            raise ValueError("no .npy file of version 1")
        header = ast.literal_eval(content[10 : 10 + length].decode("latin1"))
        stored = np.dtype(header["descr"]), tuple(header["shape"]), header["fortran_order"]
    except Exception as error:  # A damaged literal raises all kinds.
        raise DataError(f"{source}: damaged ({one_line(error)}); {remedy}") from error
    values = np.frombuffer(content, np.uint8, offset=10 + length)
    expected = tuple(shape)
    if expected[0] == -1:
        row = np.dtype(dtype).itemsize * math.prod(expected[1:])
        expected = (len(values) // row, *expected[1:])
    size = np.dtype(dtype).itemsize * math.prod(expected)
    if stored != (np.dtype(dtype), expected, False) or len(values) != size:
        raise DataError(
            f"{source}: holds {stored[0]} {list(stored[1])} in {len(values)} bytes, expected "
            f"{np.dtype(dtype)} {list(expected)} in {size}; {remedy}"
        )
    return values.view(dtype).reshape(expected)


def _problem(value: Any, kind: Any, name: str) -> str:
    """Describes the first value that is not of its kind; "" if there is none."""
    if isinstance(kind, tuple):
        problems = [_problem(value, option, name) for option in kind]
        return "" if "" in problems else problems[-1]
    if isinstance(kind, Kind):
        return "" if kind.test(value) else _wrong(name, value, kind.words)
    if kind is None:
        return "" if value is None else _wrong(name, value, "null")
    if isinstance(kind, list):
        if not isinstance(value, list | tuple):
            return _wrong(name, value, "a list")
        kinds = kind * len(value) if len(kind) == 1 else kind
        if len(kinds) != len(value):
            return _wrong(name, value, f"{len(kinds)} values")
        items = ((f"{name}[{i}]", item, kinds[i]) for i, item in enumerate(value))
    else:
        if not isinstance(value, dict):
            return _wrong(name, value, "an object")
        names = value if str in kind else kind
        if missing := [key for key in names if key not in value]:
            return f"{_join(name, missing[0])} is missing"
        items = ((_join(name, key), value[key], kind.get(key, kind.get(str))) for key in names)
    return next((problem for n, v, k in items if (problem := _problem(v, k, n))), "")


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)


def _wrong(name: str, value: Any, expected: str) -> str:
    shown = one_line(repr(value))
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{name or 'its content'} is {shown}, expected {expected}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:_SHOWN]} is too large")
    return value
