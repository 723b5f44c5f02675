"""`python -m vae.convert_torch_checkpoint`, the same as the console script."""

import sys

from vae.convert_torch_checkpoint import main

sys.exit(main())
