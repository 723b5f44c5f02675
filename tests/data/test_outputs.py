"""Output folders: where a command may write, and locks against concurrent commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae.cli import main
from vae.data.errors import DataError, UsageError
from vae.data.outputs import MARKER, claim_folder, claim_new

ROOT = Path(__file__).parents[2]


@pytest.fixture
def eyes(tmp_path) -> Path:
    """A folder of a user's photographs."""
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes" / "a.png").write_bytes(b"original")
    return tmp_path / "eyes"


def _use(out: Path, command: str = "reconstruct", **options) -> None:
    """Claims a folder and writes a file into it."""
    with claim_folder(out, command, **options):
        (out / "made.txt").write_text(command)


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_folder_is_made_and_marked(tmp_path):
    out = tmp_path / "a" / "b"
    _use(out)
    assert _left(out) == [MARKER, "made.txt"]
    holder = json.loads((out / MARKER).read_text())
    assert (holder["command"], holder["pid"]) == ("reconstruct", os.getpid())
    _use(out)  # the same command again
    _use(out, "enhance")  # several results may share a folder
    assert (out / "made.txt").read_text() == "enhance"


def test_folder_left_empty_is_removed(tmp_path):
    with pytest.raises(DataError), claim_folder(tmp_path / "a" / "b", "build"):
        raise DataError("nothing was done")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with claim_folder(tmp_path / "mine", "build"):
        pass
    assert _left(tmp_path / "mine") == []


def test_folders_of_others_are_refused(tmp_path, eyes):
    with pytest.raises(UsageError, match=r"eyes exists and was not made by decode"):
        _use(eyes, "decode")
    with pytest.raises(UsageError, match=r"a\.png cannot be written: it is a file"):
        _use(eyes / "a.png", "decode")
    (eyes / MARKER).write_text("[]")
    with pytest.raises(UsageError, match=r"was not made by decode"):
        _use(eyes, "decode")
    assert (eyes / "a.png").read_bytes() == b"original"


def test_folders_that_commands_read_later_are_exclusive(tmp_path):
    _use(tmp_path / "tiles", "make-tiles")
    with pytest.raises(UsageError, match=r"was made by make-tiles, and decode would change it"):
        _use(tmp_path / "tiles", "decode")
    _use(tmp_path / "tiles", "make-tiles")
    _use(tmp_path / "results" / "first")
    _use(tmp_path / "results")  # contains only our folders
    (tmp_path / "other" / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match="not made by"):
        _use(tmp_path / "other")


def test_folders_of_earlier_versions_are_recognised(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    _use(tmp_path / "run", "train", known=["config.json"])
    with pytest.raises(UsageError, match="made by train"):
        _use(tmp_path / "run", "evaluate", known=["results.json"])


def test_inputs_are_not_overwritten(tmp_path, eyes):
    _use(tmp_path / "ours")
    (tmp_path / "link").symlink_to(eyes)
    os.link(eyes / "a.png", tmp_path / "hard.png")
    for out, message in [
        (eyes, "is .*eyes, which is read"),
        (tmp_path / "link", "is .*eyes, which is read"),
        (eyes / "out", "lies in .*eyes, which is read"),
        (tmp_path / "link" / "out", "lies in .*eyes, which is read"),
        (tmp_path, "eyes is read and lies in .*, where it could be overwritten"),
    ]:
        with pytest.raises(UsageError, match=message):
            _use(out, reads=["gone", None, eyes])
    for name in ("eyes/a.png", "hard.png", "link/a.png"):
        with (
            pytest.raises(UsageError, match=r"is .*a\.png, which is read"),
            claim_new(tmp_path / name, "degradations", reads=[eyes / "a.png"], replaces=True),
        ):
            pass
    _use(eyes / "out", reads=[eyes / "a.png"])  # next to a single input file
    assert _left(eyes) == ["a.png", "out"]


def test_links_in_our_folder(tmp_path, eyes):
    out = tmp_path / "out"
    _use(out)
    (out / "reconstructions").symlink_to(eyes)
    with pytest.raises(UsageError, match=r"reconstructions is .*eyes, which is read"):
        _use(out, reads=[eyes])
    with pytest.raises(UsageError, match=r"reconstructions is a link to .*eyes.*remove the link"):
        _use(out)
    (out / "reconstructions").unlink()
    (out / "here").mkdir()
    (out / "again").symlink_to(out / "here")
    _use(out)
    (tmp_path / "run").mkdir()
    _use(tmp_path / "run", "train")
    (tmp_path / "run" / "checkpoints").symlink_to(eyes)  # a link to a larger disk
    _use(tmp_path / "run", "train", reads=[tmp_path / "gone"])
    with pytest.raises(UsageError, match="which is read"):
        _use(tmp_path / "run", "train", reads=[eyes])


def test_marker_that_is_a_link_is_not_followed(tmp_path, eyes):
    out = tmp_path / "out"
    _use(out)
    (out / MARKER).unlink()
    (out / MARKER).symlink_to(eyes / "a.png")
    with pytest.raises(UsageError, match="not made by"):
        _use(out)
    (out / "made.txt").unlink()
    with pytest.raises(DataError, match="is a symbolic link; remove it"):
        _use(out)
    assert (eyes / "a.png").read_bytes() == b"original"


def test_new_files(tmp_path, eyes):
    sheet = tmp_path / "sheet.png"
    with claim_new(sheet, "degradations", reads=[eyes / "a.png"]):
        sheet.write_bytes(b"sheet")
    assert _left(tmp_path) == ["eyes", "sheet.png"]
    with pytest.raises(UsageError, match="is there already"), claim_new(sheet, "degradations"):
        pass
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(UsageError, match="is there already"),
        claim_new(tmp_path / "dangling.png", "degradations"),
    ):
        pass
    nowhere = tmp_path / "no" / "s.png"
    with pytest.raises(UsageError, match="there is no folder"), claim_new(nowhere, "degradations"):
        pass
    with claim_new(nowhere, "encode", parents=True):
        pass
    (tmp_path / "empty").mkdir()
    with claim_new(tmp_path / "empty", "export", folder=True):
        pass
    assert _left(tmp_path) == ["dangling.png", "empty", "eyes", "sheet.png"]


@pytest.mark.parametrize(
    "claim", ["claim_folder({out!r}, 'build')", "claim_new({out!r}, 'encode', parents=True)"]
)
def test_concurrent_commands(tmp_path, claim):
    out = tmp_path / "below" / "out"
    program = (
        "import sys, time\nfrom vae.data.outputs import *\n"
        f"with {claim.format(out=str(out))}:\n    print('mine', flush=True)\n    time.sleep(600)"
    )

    def begin():
        return subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )

    def claimed():
        return claim_folder(out, "build") if "folder" in claim else claim_new(out, "encode")

    first = begin()
    assert first.stdout.readline() == "mine\n"
    command = "build" if "folder" in claim else "encode"
    message = (
        rf"{out} is in use by process {first.pid} on host \S+ \({command}\) since 20\S+ \S+; wait "
        "for it, or choose another"
    )
    with pytest.raises(UsageError, match=message), claimed():
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    with claimed():  # the lock of a dead process is released
        pass
    with claimed():
        pass


def test_child_processes_do_not_hold_the_lock(tmp_path):
    out = tmp_path / "out"
    with claim_folder(out, "build"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with claim_folder(out, "build"):
            pass
    finally:
        child.kill()
        child.wait()


def test_buckets_are_not_claimed():
    with claim_folder("gs://bucket/run", "train"), claim_new("gs://bucket/x", "export"):
        pass


# --- make-tiles, whose workers are processes -----------------------------------------------------


def _running(group: int) -> list[int]:
    """Returns the running processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def many_eyes(tmp_path_factory):
    from vae.data.synthetic import write_photographs

    folder = tmp_path_factory.mktemp("eyes")
    write_photographs(folder, patients=12, eyes=2, size=700)
    return folder


@pytest.fixture
def cutting(many_eyes, tmp_path):
    """Starts `make-tiles` with two workers in its own session; yields (process, command)."""
    # Tests in the background of a shell ignore SIGINT, and their children inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; import sys; from vae.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "make-tiles", "--photographs", str(many_eyes)]
    command += ["--out", str(tmp_path / "tiles"), "--workers", "2", "--patients_unknown"]
    command += ["--tile", "64", "--stride", "32"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "tiles").glob("*/*/*.png")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    yield process, command
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_make_tiles_ends_with_its_workers(cutting, number, capsys):
    process, command = cutting
    assert len(_running(process.pid)) >= 3
    assert main(command[3:]) == 2
    assert f"tiles is in use by process {process.pid} on host" in capsys.readouterr().err
    os.kill(process.pid, number)
    # The pipe closes when no process holds it.
    output, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while (left := _running(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    expected = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
    assert process.returncode == expected[number], output
    if number != signal.SIGKILL:
        assert "photographs are finished; the same command continues" in output
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "tiles of 24 photographs" in again.stdout
