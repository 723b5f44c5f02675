"""Connects the processes of a run, before JAX uses a device."""

import importlib.util
import os

import jax

from vae.data.errors import UsageError, one_line


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Connects to the other processes of the run; does nothing for a single process.

    On TPU pods, under Slurm and under Open MPI the first three arguments may be None; JAX finds
    them.

    Args:
      coordinator_address: HOST:PORT of the first process, reachable from all processes.
      num_processes: Number of processes.
      process_id: Index of this process, 0 <= process_id < num_processes.
      heartbeat_seconds: Time without a heartbeat of one process after which the others end.

    Raises:
      UsageError: Arguments are missing or invalid, or the connection fails.
    """
    given = (coordinator_address, num_processes, process_id)
    names = ("--coordinator_address", "--num_processes", "--process_id")
    if any(value is not None for value in given):
        if missing := [name for name, value in zip(names, given, strict=True) if value is None]:
            raise UsageError(f"{', '.join(missing)} missing; {', '.join(names)} go together")
        if not 0 <= process_id < num_processes:
            raise UsageError(
                f"--process_id={process_id} must lie in 0..{num_processes - 1}, for "
                f"--num_processes={num_processes}"
            )
        if ":" not in coordinator_address:
            raise UsageError(f"--coordinator_address={coordinator_address} is not HOST:PORT")
    elif not _in_a_group():
        return
    if heartbeat_seconds < 1:
        raise UsageError(f"--heartbeat_seconds={heartbeat_seconds} must be at least 1")
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes of this run cannot connect: {one_line(error)[:300]}; give "
            f"{', '.join(names)}"
        ) from error


def _in_a_group() -> bool:
    """Returns True if a launcher started several processes, or on a TPU host, which may be one."""
    for size in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if os.environ.get(size, "1") != "1":
            return True
    tpu = importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS", "tpu") != "cpu"
    return bool(tpu) and any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
