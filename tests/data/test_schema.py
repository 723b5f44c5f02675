"""Checks of what is read back from files."""

import io
import json

import numpy as np
import pytest

from vae.data import schema
from vae.data.errors import DataError

KIND = {
    "name": schema.TEXT,
    "count": schema.whole(1, 100),
    "share": (None, schema.number(0, 1)),
    "rows": {str: [schema.whole(), schema.FLAG]},
    "sizes": [schema.one_of(64, 256)],
}
GOOD = {"name": "é", "count": 3, "share": 1, "rows": {"a": [1, True]}, "sizes": [], "more": 0}


def parse(value):
    content = value if isinstance(value, str | bytes) else json.dumps(value)
    return schema.parse_json(content, "file.json", KIND, remedy="build it again")


def test_values_of_their_kinds_are_returned():
    assert parse(GOOD) == GOOD
    assert parse(GOOD | {"share": None, "sizes": [64, 256, 64]})["sizes"] == [64, 256, 64]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GOOD | {"count": 0}, "count is 0, expected an integer from 1 to 100"),
        (GOOD | {"count": True}, "count is True, expected an integer"),
        (GOOD | {"count": 10**400}, r"count is 1000.*\.\.\., expected an integer"),
        (GOOD | {"share": float("nan")}, r"damaged \(NaN is no number\)"),
        (GOOD | {"share": -1}, "share is -1, expected a number from 0 to 1"),
        ('{"share": 1e999}', r"damaged \(1e999 is too large\)"),
        (GOOD | {"rows": {"a": [1, 2]}}, r"rows\.a\[1\] is 2, expected true or false"),
        (GOOD | {"rows": {"a": [1]}}, r"rows\.a is \[1\], expected 2 values"),
        (GOOD | {"rows": []}, r"rows is \[\], expected an object"),
        (GOOD | {"sizes": [64, 65]}, r"sizes\[1\] is 65, expected one of 64, 256"),
        (GOOD | {"sizes": "64"}, "sizes is '64', expected a list"),
        ({"name": "a"}, "count is missing"),
        ([], r"its content is \[\], expected an object"),
        ("[" * 100_000, "damaged .*recursion"),
        ("1" * 10_000, "damaged"),
        (b"\xff", "damaged"),
        ("", "damaged"),
    ],
)
def test_other_values_are_one_line(value, message):
    with pytest.raises(DataError, match=f"^file.json: .*{message}.*; build it again$") as refusal:
        parse(value)
    assert len(str(refusal.value)) < 250


def test_sealed_values_are_whole_or_refused():
    content = json.dumps(schema.sealed(GOOD))
    assert schema.parse_sealed(content, "f", KIND, remedy="r") == GOOD
    for changed in (content.replace('"more": 0', '"more": 1'), json.dumps(GOOD)):
        with pytest.raises(DataError, match="its checksum differs"):
            schema.parse_sealed(changed, "f", KIND, remedy="r")


def test_arrays_are_whole_or_refused():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = io.BytesIO()
    np.save(file, array)
    content = file.getvalue()
    for shape in ((3, 4), (-1, 4)):
        found = schema.read_npy(content, "f", np.float32, shape, remedy="r")
        np.testing.assert_array_equal(found, array)
    for wrong in (
        content[:-1],
        content + b"0",
        content.replace(b"(3, 4)", b"(9, 4)"),
        content.replace(b"(3, 4)", b"(((((("),
        content.replace(b"<f4", b"<i4"),
        content.replace(b"False", b"True "),
        b"",
        content[:20],
    ):
        for shape in ((3, 4), (-1, 4)):
            with pytest.raises(DataError, match="^f: .*; r$"):
                schema.read_npy(wrong, "f", np.float32, shape, remedy="r")
