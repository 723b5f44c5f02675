"""Where a run's random numbers come from."""

import zlib

import jax


def step_key(seed: int, duty: str, step: jax.Array | int) -> jax.Array:
    """The key of one duty at one step: adding a duty never shifts the others' randomness."""
    key = jax.random.key(seed)
    # Python's hash differs between processes; crc32 does not.
    key = jax.random.fold_in(key, zlib.crc32(duty.encode()))
    return jax.random.fold_in(key, step)
