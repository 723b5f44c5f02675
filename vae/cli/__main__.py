"""`python -m vae.cli`, the same as `fundus-vae`."""

from vae.cli import entry

entry()
