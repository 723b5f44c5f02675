"""The tfds dataset `fundus_tiles`: directories of tiles -> sharded records.

`build.build` makes it; readers of a dataset need only the names below.
"""

NAME = "fundus_tiles"
VERSION = "1.2.0"  # Of the examples; the reader refuses another one.
