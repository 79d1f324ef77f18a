"""Settings of hypothesis, and fixtures: a process that writes a rank's log step by step, and a small file system."""

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

from hpc_dasgd.storage.layout import rank_file

# Examples have no deadline: a test must not fail because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Row k holds k in every column except the times; prints the last row that it has appended.
SCRIPT = """
import itertools, sys
from pathlib import Path
import numpy as np
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog

with RankLog(Path(sys.argv[1]), LogSettings(0, 1, 1)) as log:
    for k in itertools.count():
        log.append(k / 1000, (k + 0.5) / 1000, k, k, k, np.array([k]))
        if k % 1000 == 0:
            log.append_evaluation(k, k, k, k)
            print(k, flush=True)
            sys.stdin.readline()
"""


class Writer:
    """The process, and the directory in which it writes the log of rank 0 of 1."""

    def __init__(self, directory, process):
        self.directory, self.path, self._process = directory, directory / rank_file(0), process
        self.wait_for(0)

    def wait_for(self, last):
        assert self._process.stdout.readline() == f"{last}\n"

    def append_1000(self, last):
        """Append rows up to `last`, which are in the file when this returns."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.wait_for(last)

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=["BEST_EFFORT", None], ids="locking_{}".format)
def writer(request, tmp_path):
    """A `Writer` with the file locking that the launcher sets, or with HDF5's default."""
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    if request.param is not None:
        environment["HDF5_USE_FILE_LOCKING"] = request.param
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            yield Writer(tmp_path, process)
        finally:
            process.kill()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("only root may make a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
