"""A run: losses, optimizer, sharding, state, steps, checkpoints, and the loop that joins them."""
