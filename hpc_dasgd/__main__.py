"""``python -m hpc_dasgd`` is ``hpc-dasgd``."""

import sys

from hpc_dasgd.cli.main import main

sys.exit(main())
