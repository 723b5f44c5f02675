"""Runs an experiment in this process and interrupts it before its Nth batch.

    python tests/vae/interrupted.py kill[+MS]|term|slow_term|full|none N --config=... --workdir=...

kill: SIGKILL; kill+MS: SIGKILL MS milliseconds later; term: SIGTERM; slow_term: SIGTERM, and each
step takes half a second; full: files cannot grow beyond 20 kB, as on a full disk.
"""

import functools
import os
import pathlib
import resource
import runpy
import signal
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vae.sharding import put_batch  # noqa: E402
from vae.tasks import autoencoding, enhancement, prior  # noqa: E402

action, _, later = sys.argv[1].partition("+")
at = int(sys.argv[2])
sys.argv = [str(ROOT / "run_experiment.py"), *sys.argv[3:]]
count = 0


def put(mesh, batch):
    global count
    count += 1
    if count == at:
        if action == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        elif later:
            kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
            threading.Timer(int(later) / 1000, kill).start()
        elif action != "none":
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGTERM)
    if action == "slow_term":
        time.sleep(0.5)
    return put_batch(mesh, batch)


for task in (autoencoding, enhancement, prior):
    task.put_batch = put
runpy.run_path(sys.argv[0], run_name="__main__")
