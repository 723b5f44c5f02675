"""Without the packages of an extra, a command says in one line which extra it needs."""

import configparser
import pathlib
import re
import sys

import numpy as np
import pytest

from vae import convert_torch_checkpoint
from vae.cli import main
from vae.data.dicom import decode_dicom
from vae.data.errors import DataError, UsageError
from vae.data.extras import require_extra
from vae.data.fundus_tiles.on_beam import parse_options
from vae.data.storage import filesystem
from vae.inference.embedding_clusters import make_map

ROOT = pathlib.Path(__file__).resolve().parents[2]


def declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return dict(setup["options.extras_require"])


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("matplotlib.figure", "report", ["evaluate", "--data", "gone", "--report", "report"]),
        ("matplotlib.figure", "embed", ["embed", "gone.zarr", "--out", "map"]),
        ("sklearn", "embed", ["embed", "gone.zarr", "--out", "map"]),
    ],
)
def test_commands(module, extra, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"pip install 'fundus-vae[{extra}]'" in line
    assert not list(tmp_path.iterdir())


def test_the_converter(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert_torch_checkpoint.main(["model.pth", "--dry_run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fundus-vae[convert]'" in line


def test_functions(monkeypatch):
    for module in ("umap", "apache_beam", "pydicom", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"fundus-vae\[umap\]"):
        make_map(np.zeros((4, 2)), "umap", 0)
    with pytest.raises(UsageError, match=r"fundus-vae\[beam\]"):
        parse_options("", None)
    with pytest.raises(UsageError, match=r"fundus-vae\[gcs\]"):
        filesystem("gs://bucket/data")
    with pytest.raises(DataError, match=r"fundus-vae\[dicom\]"):
        decode_dicom(b"", "eye.dcm")


def test_every_extra_that_a_message_names_is_declared():
    with pytest.raises(UsageError, match=r"^No module named 'no_such': --x needs `pip install"):
        require_extra("x", "--x", "no_such")
    named = set()
    for folder in ("vae", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r"fundus-vae\[(\w+)\]", text))
            named |= set(re.findall(r'require_extra\(\s*"(\w+)"', text))
    assert {"report", "embed", "umap", "convert", "beam", "gcs", "dicom"} <= named
    assert named <= set(declared())
