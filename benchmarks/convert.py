"""Time and memory of a conversion of the published model, with memory relative to the file size.

    python benchmarks/convert.py [--verify]

Writes a file of the published layout and size (1.73 GB, random weights) to a temporary folder and
converts it in a separate process. The peak is the resident memory above that after the imports;
memory-mapped pages of the file count as resident. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vae.convert_torch_checkpoint.torch_module import PublishedVAE
from vae.models import FundusVAE

# Program of the measured process; prints its memory after imports and at the peak, in bytes.
DRIVER = """
import json, re, sys, time
from vae.convert_torch_checkpoint import main, run

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before, start = memory("VmRSS"), time.perf_counter()
code = main(sys.argv[1:])
seconds = time.perf_counter() - start
print(json.dumps({"code": code, "before": before, "peak": memory("VmHWM"), "seconds": seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="pass --verify to the command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.pth"
        torch.save(PublishedVAE(FundusVAE()).state_dict(), source)
        size = source.stat().st_size
        commands = {
            "from PyTorch": [str(source), "--out", f"{folder}/ours"],
            "to PyTorch": ["--to_torch", f"{folder}/ours", "--out", f"{folder}/back.pth"],
        }
        if arguments.verify:
            commands["from PyTorch"].append("--verify")
        print(f"a file of {size / 1e9:.2f} GB")
        for name, command in commands.items():
            start = time.perf_counter()
            output = subprocess.run(
                [sys.executable, "-c", DRIVER, *command], stdout=subprocess.PIPE, check=True
            ).stdout.decode()
            whole = time.perf_counter() - start
            metrics = json.loads(output.splitlines()[-1])
            above = metrics["peak"] - metrics["before"]
            print(
                f"{name}: {whole:.1f} s with imports, {metrics['seconds']:.1f} s without; peak "
                f"{above / 1e9:.2f} GB above {metrics['before'] / 1e9:.2f} GB, "
                f"{above / size:.2f} times the file"
            )
            print("\n".join(output.splitlines()[:-1]))


if __name__ == "__main__":
    main()
