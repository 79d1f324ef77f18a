"""The ``mpiexec`` that jobs and tests start programs with: the one beside this Python, else the one on the path."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]  # the programs of jobs and tests are packages there
_BESIDE = Path(sys.executable).with_name("mpiexec")
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec")
# Open MPI refuses root, and more ranks than cores, unless told otherwise; the others do not read these.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
