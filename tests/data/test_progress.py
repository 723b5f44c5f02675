"""Progress on stderr: a bar on a terminal, else a line from time to time."""

import sys

from vae.data import progress


def test_short_work_is_silent(capsys):
    assert list(progress.watched(range(5), "reading", 5, "tile")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_long_work_says_how_long_it_takes(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(progress.watched(range(6), "reading", 6, "tile"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading: 2 of 6 tiles, 80 s left",
        "reading: 4 of 6 tiles, 40 s left",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress("reading", 3, "tile") as advance:
        advance(3)
    assert "reading" in capsys.readouterr().err
