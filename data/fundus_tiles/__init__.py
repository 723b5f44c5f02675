"""The tfds dataset `fundus_tiles`: sharded records made from a folder of tiles.

`build.build` makes it; readers of a dataset need only the names below.
"""

NAME = "fundus_tiles"
VERSION = "1.3.0"  # Version of the examples and metadata; the reader refuses any other.
