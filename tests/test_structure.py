"""Import rules between the packages, and the cost of imports."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Lowest floor first; a module imports from its own floor and those below.
FLOORS = (
    ("vae.data",),
    ("vae.metrics", "vae.models", "vae.multihost", "vae.precision", "vae.sharding", "vae.weights"),
    ("vae.checkpoints", "vae.configs"),
    ("vae.inference",),
    ("vae.evaluation",),
    ("vae.tasks",),
    ("vae.training",),
    ("vae.convert_torch_checkpoint", "vae.cli", "vae.__init__"),
    ("run_experiment",),
)
# The package imports `load_model` inside a function only.
LAZY = {"vae.__init__": "vae.inference"}


def floor(module: str) -> int | None:
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def modules():
    """Returns the files of all modules by their installed names."""
    for folder in ("vae", "data", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = name if folder == "vae" else f"vae.{name}"
            package = name.removesuffix(".__init__")
            yield (name if package == "vae" else package), path


def imported(path: pathlib.Path):
    """Yields (module, True if at the top level) of imports; `from a import b` also yields a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def test_imports_point_downwards():
    seen, wrong = 0, []
    for name, path in modules():
        here = floor(name)
        assert here is not None, f"{name} has no floor"
        for target, top in imported(path):
            there = floor(target)
            if there is None:
                continue
            seen += 1
            lazy = not top and target.startswith(LAZY.get(name, "?"))
            if there > here and not lazy:
                wrong.append(f"{name} imports {target}")
    assert seen > 50
    assert not wrong


def test_data_is_free_of_jax_and_tensorflow():
    for name, path in modules():
        if name.startswith("vae.data"):
            found = {target.split(".")[0] for target, _ in imported(path)}
            assert not found & {"jax", "flax", "tensorflow"}, name


def test_a_model_is_loaded_without_training_code_and_optimizer():
    code = (
        "import sys, vae; vae.load_model(); vae.load_enhancer(); vae.load_sampler()\n"
        "print([name for name in sys.modules if name.startswith(('vae.training', 'vae.evaluation'))"
        " or name.split('.')[0] in ('optax', 'orbax', 'tensorflow', 'tensorflow_datasets')])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
