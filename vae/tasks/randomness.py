"""Random keys of a run."""

import zlib

import jax


def step_key(seed: int, duty: str, step: jax.Array | int) -> jax.Array:
    """Returns the key of one duty, as "augment", at one step; duties are independent."""
    key = jax.random.key(seed)
    # Python's hash differs between processes; crc32 does not.
    key = jax.random.fold_in(key, zlib.crc32(duty.encode()))
    return jax.random.fold_in(key, step)
