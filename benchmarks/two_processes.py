"""Two processes on this machine as one run, beside one process: the losses, step by step.

    python benchmarks/two_processes.py [--workdir runs/two]

What a cluster does, on CPU devices: the processes find each other at a port of this machine, each
reads its own rows of every batch, and gradients are summed between them.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVICES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=None)
    base = parser.parse_args().workdir or pathlib.Path(tempfile.mkdtemp())
    losses = [run(base / name, processes) for name, processes in (("one", 1), ("two", 2))]
    print(f"{'step':>4}  {'one process':>12}  {'two processes':>13}")
    for step, (one, two) in enumerate(zip(*losses, strict=True)):
        print(f"{step:4}  {one:12.7f}  {two:13.7f}")
    largest = max(abs(one - two) for one, two in zip(*losses, strict=True))
    print(f"both in {base}; largest difference {largest:.1e}")


def run(workdir: pathlib.Path, processes: int) -> list[float]:
    """The smoke preset on `DEVICES` CPU devices, shared between the processes -> losses."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "run_experiment.py", "--config=configs/fundus256.py:smoke"]
    command += [f"--workdir={workdir}", "--config.train.log_every=1"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
    }
    group = [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}"]
    started = []
    for i in range(processes):
        flags = [*group, f"--process_id={i}"] if processes > 1 else []
        output = None if i == 0 else subprocess.DEVNULL
        arguments = command + flags
        started.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output))
    if any(process.wait() for process in started):
        sys.exit("a process failed; its error is above")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


if __name__ == "__main__":
    main()
