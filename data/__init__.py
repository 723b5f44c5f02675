"""From fundus photographs to batches of tiles. Imports no other part of the package."""
