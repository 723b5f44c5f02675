"""`run_experiment.py` on the command line: each error is one line and an exit code."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from vae.cli import train as train_command
from vae.data.errors import DataError, UsageError
from vae.data.outputs import claim_folder
from vae.training.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]


def error(*options: str) -> tuple[int, str]:
    """Returns the exit code and standard error of a command."""
    done = subprocess.run(
        [sys.executable, "run_experiment.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_mistyped_setting(tmp_path):
    code, said = error(
        "--config=configs/fundus256.py:smoke",
        "--config.trian.steps=5",
        f"--workdir={tmp_path / 'run'}",
    )
    expected = "error: --config.trian.steps=5: there is no setting trian; did you mean train?\n"
    assert (code, said) == (2, expected)
    assert not (tmp_path / "run").exists()


def test_config_file_that_is_not_there(tmp_path):
    code, said = error("--config=nothere.py", f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert said.startswith("error: --config: ") and said.count("\n") == 1
    assert "nothere.py" in said and "No such file" in said


def test_second_run_in_a_workdir_is_refused(tiny_data, tmp_path):
    command = ["--config=configs/fundus256.py:smoke", "--config.data.source="]
    command += [f"--config.data.dir={tiny_data}", f"--workdir={tmp_path / 'run'}"]
    with claim_folder(tmp_path / "run", "train"):
        for mode in ("train", "evaluate"):
            code, said = error(*command, f"--mode={mode}")
            assert code == 2 and said.startswith(f"error: folder {tmp_path / 'run'} is in use by")
            assert f"process {os.getpid()} on host" in said and said.count("\n") == 1


def test_damaged_record_stops_the_run(tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    (shard,) = tmp_path.rglob("*-train.tfrecord*-of-00001")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    code, said = error(
        "--config=configs/fundus256.py:smoke",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.source=",
        "--config.data.size=32",
        "--config.data.crop=16",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 1
    assert said.startswith(f"error: {shard}: record ") and said.count("\n") == 1
    assert "does not match its checksum; restore the file or build the dataset again" in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AttributeError("'stepz'\nDid you mean \"steps\"?"), "--config.train.stepz=5: there is no "
         "setting stepz; did you mean steps?"),
        (KeyError("'stepz'"), "--config.train.stepz=5: there is no setting stepz there"),
        (SyntaxError("invalid syntax"), "--config: SyntaxError: invalid syntax; expected FILE.py"),
        (AttributeError("module 'x' has no attribute 'get_config'"), "--config: AttributeError: .*"
         "'get_config'; expected FILE.py"),
        (UsageError("fundus256.py:nope is no preset"), "fundus256.py:nope is no preset"),
    ],
)  # fmt: skip
def test_reasons(error, expected):
    said = train_command._reason(error, ["run_experiment.py", "--config.train.stepz=5"])
    assert re.match(expected, said), said


def test_impossible_workdir(tiny_config, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"--workdir={workdir} cannot be made: .*; give a fold"):
            train(tiny_config, workdir)
    assert (tmp_path / "file").read_text() == "mine"


def test_no_data_and_no_split(tiny_config, tmp_path):
    tiny_config.eval.split = "all"
    with pytest.raises(DataError, match=r"no tiles in split 'all' \(eval.split\), it has {'train'"):
        train(tiny_config, tmp_path / "a")
    tiny_config.data.dir = ""
    with pytest.raises(UsageError, match="data.dir is empty; give --config.data.dir=DIR"):
        train(tiny_config, tmp_path / "b")
    tiny_config.data.dir = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere: no dataset here; make one with"):
        train(tiny_config, tmp_path / "c")


def test_tiles_smaller_than_the_config(tiny_config, tmp_path):
    tiny_config.data.size = 64
    with pytest.raises(DataError, match="is 32x32 and the config wants 64x64; cut larger tiles"):
        train(tiny_config, tmp_path)
