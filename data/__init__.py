"""From fundus photographs to batches of tiles. Knows nothing of the models."""
