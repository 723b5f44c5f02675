"""Experiments: a file each, `get_config(preset)`."""
