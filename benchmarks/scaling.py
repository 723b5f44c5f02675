"""Compute, memory and communication of a training step on 8, 64 and 256 simulated devices.

    python benchmarks/scaling.py                            # everything: 7 minutes on 2 cores
    python benchmarks/scaling.py --configs published:full --devices 8 --dtype bfloat16

The step is compiled ahead of time for simulated CPU devices from shapes alone; nothing is allocated
or run. Three tables are printed: the collectives of the compiled program; the bytes that a TPU or
GPU sends according to the partitions of the parameters; and predicted (not measured) times at the
peak rates of the makers' data sheets. For the gradient of a sharded leaf, TPU and GPU compilers use
a reduce-scatter; the CPU compiler uses an all-reduce and drops the other pieces.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
from absl import logging

from vae.sharding import device_bytes, make_mesh, tree_sharding
from vae.tasks import task_of
from vae.training.steps import make_train_step
from vae.training.train_state import abstract_state

CONFIGS = ("fundus256:f8c32", "published:full")
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

# Tiles/s decoded per core: `python benchmarks/input_pipeline.py` gives 4,670 and 1,639 on 2 cores.
CORE_JPEG, CORE_PNG = 4670 / 2, 1639 / 2


PREDICTIONS = """
Predicted at peak rates, not measured. Milliseconds of a step by cause (memory traffic is that of
the CPU program, an upper estimate); tiles/s of all devices if the three causes add up ("one by
one"), or if only the slower of compute and network counts ("at most"); tiles/s that hosts decode.
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Dense peak rates of one device and its surroundings, from the makers' data sheets.

    Attributes:
      name: Name in the table.
      sizes: Numbers of devices on one interconnect.
      flops: FLOP/s by compute dtype of the convolutions.
      exact: FLOP/s of matrix products in full float32.
      memory: Bytes/s of the device's memory.
      link: Bytes/s that a device sends to the others, one way.
      cores: Host cores per device.
    """

    name: str
    sizes: tuple[int, ...]
    flops: dict[str, float]
    exact: float
    memory: float
    link: float
    cores: float


MACHINES = (
    # NVIDIA H100 data sheet, SXM; float32 is TF32. DGX H100: two Xeon 8480C of 56 cores, 8 GPUs.
    Machine("H100", (8,), {"float32": 494e12, "bfloat16": 989e12}, 67e12, 3.35e12, 450e9, 14),
    # Cloud TPU documentation, v5e: 400 GB/s is the sum of both ways; float32 convolutions take one
    # bfloat16 pass, full float32 takes six. 224 virtual cores (112 cores) serve 8 chips.
    Machine(
        "TPU v5e",
        (8, 64, 256),
        {"float32": 197e12, "bfloat16": 197e12},
        197e12 / 6,
        819e9,
        200e9,
        14,
    ),
)


def load_config(name: str, dtype: str, per_device: int | None, devices: int):
    """Loads `FILE:PRESET` with whole tiles: `per_device`, or an eighth of its batch, per device."""
    module, _, preset = name.partition(":")
    config = importlib.import_module(f"vae.configs.{module}").get_config(preset)
    config.train.compute_dtype = dtype
    tiles = config.batch_size * config.data.crop**2 // config.data.size**2
    config.data.crop, config.data.scales = config.data.size, (1,)
    config.batch_size = devices * (per_device or tiles // 8)
    return config


def analyse(config, fsdp: int) -> dict:
    """Compiles the step for all devices of this process and analyses the program."""
    mesh = make_mesh(-1, fsdp)
    state = abstract_state(task_of(config))
    sharding = tree_sharding(state, mesh, config.mesh.fsdp_min_size)
    shape = (config.batch_size, config.data.size, config.data.size, 3)
    images = jax.ShapeDtypeStruct(shape, np.uint8)
    traced = make_train_step(task_of(config), mesh, sharding).trace(state, images)
    exact, matrix = matrix_flops(traced.jaxpr.jaxpr)
    compiled = traced.lower().compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "tiles": config.batch_size // mesh.size,
        "flops": cost["flops"],
        "exact": exact / matrix,
        "bytes": cost["bytes accessed"],
        "state": device_bytes(state, sharding),
        "temporary": memory.temp_size_in_bytes,
        "found": found_collectives(compiled.as_text()),
        "expected": expected_collectives(state.params, sharding.params, mesh),
        "cut": [
            leaf.size
            for leaf, where in zip(
                jax.tree.leaves(state.params), jax.tree.leaves(sharding.params), strict=True
            )
            if not where.is_fully_replicated
        ],
    }


def matrix_flops(jaxpr) -> tuple[float, float]:
    """Counts FLOPs of the matrix products and convolutions of a program: (in full float32, all).

    The zeros between the inputs of a transposed convolution count too: only the ratio is used.
    """
    exact = total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            output = equation.outvars[0].aval
            left, right = (variable.aval.shape for variable in equation.invars)
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = np.prod([left[axis] for axis in contracted])
            else:
                numbers = equation.params["dimension_numbers"]
                depth = np.prod(right) / right[numbers.rhs_spec[0]]
            flops = 2.0 * depth * output.size
            total += flops
            if (equation.params["precision"] or (None,))[0] == jax.lax.Precision.HIGHEST:
                exact += flops
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                more = matrix_flops(inner)
                exact, total = exact + more[0], total + more[1]
    return exact, total


def found_collectives(text: str) -> list[tuple[str, int, int, int]]:
    """Finds the collectives of a compiled program: (kind, devices in a group, bytes, values).

    Bytes are those of the whole array that is reduced or gathered.
    """
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    pattern = re.compile(rf"%\S+ = (\(.*?\)|\S+) ({kinds})(?:-start)?\((.*)")
    found = []
    for line in text.splitlines():
        if match := pattern.search(line):
            shapes, kind, rest = match.groups()
            arrays = [
                (int(np.prod([int(n) for n in sizes.split(",") if n])), ITEM_BYTES[dtype])
                for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            ]
            group = group_size(rest)
            if kind == "all-to-all":  # the pieces for the devices form one array
                count, size = sum(a for a, _ in arrays), arrays[0][1]
                arrays = [(count, size)]
            scale = group if kind == "reduce-scatter" else 1
            found += [(kind, group, scale * n * size, scale * n) for n, size in arrays]
    return found


def group_size(text: str) -> int:
    """Returns the number of devices in one collective, from its attributes."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{(.*?)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return int(np.prod([int(part) if part else sizes[name] for name, part in axes]))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return match[1].count(",") + 1
    if "source_target_pairs" in text:
        return 2
    raise ValueError(f"no devices in the attributes of a collective: {text[:200]}")


def expected_collectives(params, sharding, mesh) -> list[tuple[str, int, int, int]]:
    """Computes the collectives of a TPU or GPU from the partitions, like `found_collectives`.

    A sharded leaf is gathered once, for forward and backward pass; its gradient is reduce-scattered
    over "fsdp", and the piece is all-reduced over "data". The gradient of a replicated leaf is
    all-reduced over all devices. Statistics and metrics of a step are small and left out.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    expected = []
    for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(sharding), strict=True):
        whole = leaf.size * leaf.dtype.itemsize
        if where.is_fully_replicated:
            expected.append(("all-reduce", data * fsdp, whole, leaf.size))
            continue
        expected.append(("all-gather", fsdp, whole, leaf.size))
        expected.append(("reduce-scatter", fsdp, whole, leaf.size))
        if data > 1:
            expected.append(("all-reduce", data, whole // fsdp, leaf.size // fsdp))
    return expected


def on_accelerators(found: list, cut: list[int]) -> list:
    """Converts the CPU program's collectives to those of TPU and GPU.

    The CPU reduces the gradient of a sharded leaf by an all-reduce of the leaf's size, and each
    device keeps its piece of the result; TPU and GPU compilers use a reduce-scatter instead.
    """
    left = collections.Counter(cut)
    changed = []
    for kind, group, size, values in sorted(found, key=lambda entry: -entry[1]):
        if kind == "all-reduce" and left[values] > 0:
            left[values] -= 1
            kind = "reduce-scatter"
        changed.append((kind, group, size, values))
    return changed


def sent(entries: list) -> float:
    """Returns the bytes that each device sends in bandwidth-optimal algorithms, such as a ring."""
    times = {"all-reduce": 2}
    return sum(times.get(kind, 1) * (group - 1) / group * size for kind, group, size, _ in entries)


def summary(entries: list) -> str:
    """Formats `all-reduce over 8: 3 x, 4.8 MB` for every kind and size of group."""
    sums = collections.defaultdict(lambda: [0, 0])
    for kind, group, size, _ in entries:
        sums[kind, group][0] += 1
        sums[kind, group][1] += size
    parts = [
        f"{kind} over {group}: {count} x, {size / 1e6:,.1f} MB"
        for (kind, group), (count, size) in sorted(sums.items())
        if group > 1 and size >= 5e4
    ]
    return "; ".join(parts) or "none"


def predict(result: dict, machine: Machine, dtype: str) -> dict[str, float]:
    """Predicts the seconds of a step by cause, at peak rates, and tiles/s of a device."""
    exact = result["exact"] * result["flops"]
    compute = exact / machine.exact + (result["flops"] - exact) / machine.flops[dtype]
    memory = result["bytes"] / machine.memory
    network = sent(on_accelerators(result["found"], result["cut"])) / machine.link
    return {
        "compute": compute,
        "memory": memory,
        "network": network,
        "least": result["tiles"] / (compute + memory + network),
        "most": result["tiles"] / max(compute, network),
    }


def compiled_elsewhere(name: str, devices: int, fsdp: int, options) -> dict:
    """Runs `analyse` in a separate process with the given number of simulated devices."""
    command = [sys.executable, __file__, "--one", name, "--devices", str(devices)]
    command += ["--fsdp", str(fsdp), "--dtype", options.dtype]
    if options.per_device:
        command += ["--per_device", str(options.per_device)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Compiles the step and prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="FILE:PRESET")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument(
        "--fsdp", type=int, nargs="+", default=[1, 8, 0], help="1: data-parallel; 0: all devices"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--per_device", type=int, help="tiles; an eighth of the config's batch")
    parser.add_argument("--one", metavar="FILE:PRESET", help="one analysis, as JSON")
    options = parser.parse_args()
    if options.one:
        logging.set_verbosity(logging.ERROR)  # hides warnings of leaves that do not divide
        devices, fsdp = options.devices[0], options.fsdp[0]
        config = load_config(options.one, options.dtype, options.per_device, devices)
        print(json.dumps(analyse(config, fsdp)))
        return
    results = {}
    for name in options.configs:
        print(f"\n{name}, {options.dtype}, mesh (data, fsdp); per device and step")
        for devices in options.devices:
            for fsdp in sorted({fsdp or devices for fsdp in options.fsdp}):
                result = compiled_elsewhere(name, devices, fsdp, options)
                results[name, devices, fsdp] = result
                print_program(devices, fsdp, result)
    print_predictions(results, options.dtype)


def print_program(devices: int, fsdp: int, result: dict) -> None:
    there = on_accelerators(result["found"], result["cut"])
    print(
        f"({devices // fsdp}, {fsdp}): {result['tiles']} tiles, {result['flops'] / 1e9:.1f} GFLOP, "
        f"{result['exact']:.0%} of the products in full float32, {result['bytes'] / 1e9:.2f} GB "
        f"of memory traffic; holds {result['state'] / 1e6:.1f} MB of state and "
        f"{result['temporary'] / 1e9:.2f} GB while computing\n"
        f"    compiled for CPU    sends {sent(result['found']) / 1e6:9.1f} MB: "
        f"{summary(result['found'])}\n"
        f"    the same on TPU/GPU sends {sent(there) / 1e6:9.1f} MB: {summary(there)}\n"
        f"    by formula          sends {sent(result['expected']) / 1e6:9.1f} MB: "
        f"{summary(result['expected'])}",
        flush=True,
    )


def print_predictions(results: dict, dtype: str) -> None:
    print(PREDICTIONS)
    header = ("config", "machine", "(data, fsdp)", "batch", "compute", "memory", "network")
    rows = [(*header, "one by one", "at most", "JPEG", "PNG")]
    for (name, devices, fsdp), result in results.items():
        for machine in MACHINES:
            if devices in machine.sizes:
                p = predict(result, machine, dtype)
                rows.append(
                    (
                        name,
                        machine.name,
                        f"({devices // fsdp}, {fsdp})",
                        f"{devices * result['tiles']:,}",
                        *(f"{1e3 * p[cause]:.2f}" for cause in header[4:]),
                        *(f"{devices * p[bound]:,.0f}" for bound in ("least", "most")),
                        *(f"{devices * machine.cores * c:,.0f}" for c in (CORE_JPEG, CORE_PNG)),
                    )
                )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.rjust, row, widths)))


if __name__ == "__main__":
    main()
