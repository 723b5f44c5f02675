"""A training run: optimizer, train state, steps, checkpoints, log, signals, and the loop."""
