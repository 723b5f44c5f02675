"""The wheel installs only `vae`: no module of a user is shadowed, and copies are not mixed."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import vae

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("vae", "data", "configs")
PRINT_FILES = (
    "import vae, vae.data.fov, vae.configs.fundus256, vae.cli\n"
    "for module in (vae, vae.data.fov, vae.configs.fundus256, vae.cli): print(module.__file__)\n"
)


def run(*command, cwd, path, code=0) -> str:
    """Returns the standard output of Python, run in a folder with one more import path."""
    environment = os.environ | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def copy_of_checkout(target: pathlib.Path) -> pathlib.Path:
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=skipped)
    for name in ("run_experiment.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    return target


@pytest.fixture
def users_folder(tmp_path):
    """A folder of a user's own modules with the names of this repository's folders."""
    folder = tmp_path / "mine"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "__init__.py").write_text("MINE = True\n")
    (folder / "data.py").write_text("MINE = True\n")
    (folder / "vae_notes.py").write_text("MINE = True\n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel of this checkout, unpacked as pip does."""
    source = copy_of_checkout(tmp_path_factory.mktemp("source"))
    wheels = tmp_path_factory.mktemp("wheels")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    run(*command, "--wheel-dir", wheels, cwd=source, path="")
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_wheel_installs_vae_alone_and_all_of_it(site):
    names = {path.name for path in site.iterdir()}
    assert names == {"vae", f"fundus_vae-{vae.__version__}.dist-info"}
    ours = {
        (path.relative_to(ROOT) if folder == "vae" else "vae" / path.relative_to(ROOT)).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed", ".css", ".j2", ".js")
    }
    installed = {path.relative_to(site).as_posix() for path in (site / "vae").rglob("*")}
    assert ours <= installed


@pytest.mark.parametrize("kind", ["wheel", "checkout"])
def test_modules_of_a_user_with_our_names_are_not_shadowed(kind, users_folder, request):
    path = request.getfixturevalue("site") if kind == "wheel" else ROOT
    script = users_folder / "script.py"
    script.write_text(
        "import data, configs, vae_notes\nassert data.MINE and configs.MINE and vae_notes.MINE\n"
        + PRINT_FILES
    )
    files = run(script, cwd=users_folder, path=path).splitlines()
    assert len(files) == 4 and all(file.startswith(str(path)) for file in files)
    # Folders without an __init__.py do not hide ours either.
    shutil.rmtree(users_folder / "configs")
    (users_folder / "data.py").unlink()
    (users_folder / "data").mkdir()
    script.write_text(PRINT_FILES)
    assert run(script, cwd=users_folder, path=path).splitlines() == files


def test_checkout_and_installed_copy_are_not_mixed(site, tmp_path):
    clone = copy_of_checkout(tmp_path / "clone")
    files = run("-c", PRINT_FILES, cwd=clone, path="").splitlines()
    assert all(file.startswith(str(clone)) for file in files)
    # The script's own folder precedes installed packages.
    (clone / "configs" / "mark.py").write_text("raise SystemExit('config of the clone')\n")
    options = ["run_experiment.py", "--config=configs/mark.py", f"--workdir={tmp_path / 'run'}"]
    assert "config of the clone" in run(*options, cwd=clone, path=site, code=1)


def test_the_command_of_a_wheel_finds_the_bundled_configs(site, tmp_path):
    assert run("-m", "vae.cli", "--version", cwd=tmp_path, path=site) == (
        f"fundus-vae {vae.__version__}\n"
    )
    command = ["-m", "vae.cli", "train", "--config=fundus256:smoke", "--config.trian.steps=3"]
    said = run(*command, cwd=tmp_path, path=site, code=2)
    assert said == (
        "error: --config.trian.steps=3: there is no setting trian; did you mean train?\n"
    )
    said = run("-m", "vae.cli", "train", "--config=fundus256", cwd=tmp_path, path=site, code=2)
    assert said == "error: --workdir is missing; expected --config=FILE.py[:preset] --workdir=DIR\n"


@pytest.mark.soak
def test_a_run_of_the_wheel(site, tmp_path):
    command = ["-m", "vae.cli", "train", "--config=fundus256:smoke", "--workdir=run"]
    run(*command, cwd=tmp_path, path=site)
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_the_builder_is_found_by_its_files():
    from vae.data.fundus_tiles.builder import FundusTiles

    assert pathlib.Path(FundusTiles.pkg_dir_path) == ROOT / "data" / "fundus_tiles"
