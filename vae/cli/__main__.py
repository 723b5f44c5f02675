"""`python -m vae.cli`, the same as `fundus-vae`."""

import sys

from vae.cli import main

sys.exit(main())
