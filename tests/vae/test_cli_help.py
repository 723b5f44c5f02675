"""Examples of `--help`, suggestions for mistyped words, out of memory."""

import re
import shlex

import pytest

from vae.cli import main, make_parser
from vae.cli.train import _out_of_memory
from vae.configs.fundus256 import get_config


def examples():
    parser = make_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    for name, command in commands.choices.items():
        text = (command.epilog or "").replace(" \\\n", " ")
        found = re.findall(r"^ *fundus-vae (.*)$", text, re.MULTILINE)
        assert found or name == "train", f"{name} --help has no example"
        yield from found


@pytest.mark.parametrize("example", tuple(examples()))
def test_examples_are_commands(example):
    arguments = vars(make_parser().parse_args(shlex.split(example)))
    assert callable(arguments["run"])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["reconstrct", "eye.jpg"], "did you mean reconstruct?"),
        (["reconstruct", "eye.jpg", "--output", "out"], "did you mean --out?"),
        (["enhance", "eye.jpg", "--out", "out", "--strenght=0.5"], "did you mean --strength?"),
    ],
)
def test_mistyped_words_get_a_suggestion(words, meant, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert meant in line


def test_nothing_alike_gets_no_suggestion(capsys):
    assert main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_out_of_memory_is_one_line_with_a_batch_that_is_smaller():
    config = get_config()
    assert "--config.train.accumulate=2" in str(_out_of_memory(config))
    config.batch_size, config.train.accumulate = 48, 4
    assert "accumulate=8" in str(_out_of_memory(config)) and "are 6" in str(_out_of_memory(config))
    config.batch_size = 4
    assert "lower --config.data.crop" in str(_out_of_memory(config))


def test_a_command_out_of_memory_is_one_line(monkeypatch, tmp_path, capsys):
    def fail(*args, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr("vae.checkpoints.loading.load_saved", fail)
    assert main(["info", "f8c4"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory")
