"""Ctrl-C: exit code 130, one line, no traceback, no incomplete output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae import cli

ROOT = Path(__file__).resolve().parents[2]
# A test run in the background of a shell ignores SIGINT, and its children inherit that.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def test_an_interrupt_that_a_callback_swallows_is_raised_again():
    class Swallowing:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with cli.terminable() as signals:
            swallowing = Swallowing()
            with pytest.raises(KeyboardInterrupt):
                del swallowing
                time.sleep(10)
        assert signals == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_a_command_starts(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")


@pytest.mark.soak
@pytest.mark.parametrize("command", ["decode", "stablehlo", "train"])
def test_interrupted_commands(finished, tiny_data, tmp_path, command):
    """Ctrl-C at several moments after the command has claimed its output."""
    store = tmp_path / "l.zarr"
    model = str(finished[1])
    arguments = {
        "decode": ["decode", str(store), "--model", model, "--out", "OUT"],
        "stablehlo": ["export", "f8c32", "--stablehlo", "OUT"],
        "train": ["train", "--config=fundus256:smoke", "--workdir=OUT"],
    }[command]
    if command == "decode":
        assert cli.main(["encode", str(tiny_data), "--model", model, "--out", str(store)]) == 0
    for number, seconds in enumerate((0.0, 0.3, 1.0, 3.0, 6.0)):
        out = tmp_path / f"out{number}"
        words = [word.replace("OUT", str(out)) for word in arguments]
        program = f"{LISTEN}; from vae.cli import entry; entry()"
        run = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not list(tmp_path.glob(".fundus-vae*")) + list(out.glob(".fundus-vae*")):
            assert run.poll() is None
            time.sleep(0.02)
        time.sleep(seconds)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=120)[1]
        assert run.returncode in (0, 130), said
        assert "Traceback" not in said
        if run.returncode == 130 and command != "train":
            assert said.splitlines()[-1].startswith("interrupted; "), said
