"""Run the command line: ``python -m hpc_dasgd`` is the same program as ``hpc-dasgd``."""

import sys

from hpc_dasgd.cli.main import main

sys.exit(main())
