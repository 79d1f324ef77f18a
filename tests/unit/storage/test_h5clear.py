"""Marking files as closed that a killed process left open."""

import shutil
import struct
import subprocess

import h5py
import numpy as np
import pytest

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.h5clear import mark_closed


def test_file_of_a_killed_process_opens_after_it_is_marked_closed(writer):
    writer.append_1000(1000)
    writer.kill()
    with pytest.raises(OSError, match="already open"):
        h5py.File(writer.path)
    mark_closed(writer.path)
    with h5py.File(writer.path) as file:
        np.testing.assert_array_equal(file["gradient/loss"], np.arange(1001))
        np.testing.assert_array_equal(file["gradient/versions"][:, 0], np.arange(1001))
    before = writer.path.read_bytes()
    mark_closed(writer.path)
    assert writer.path.read_bytes() == before
    if shutil.which("h5dump"):
        command = ["h5dump", "-d", "/gradient/loss", "-s", "999", "-c", "2", str(writer.path)]
        assert "(999): 999, 1000" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_marking_a_closed_file_does_not_change_it(tmp_path):
    with h5py.File(tmp_path / "file.h5", "w", libver=("v110", "v110")) as file:
        file["x"] = np.arange(10)
    before = (tmp_path / "file.h5").read_bytes()
    mark_closed(tmp_path / "file.h5")
    assert (tmp_path / "file.h5").read_bytes() == before


@pytest.mark.parametrize("change", ["text", "short", "other version", "damaged"])
def test_files_of_other_formats_are_refused_and_not_changed(tmp_path, change):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w", libver="earliest" if change == "other version" else ("v110", "v110")) as file:
        file["x"] = np.arange(10)
    content = bytearray(path.read_bytes())
    if change == "damaged":
        content[28:36] = struct.pack("<Q", 12345)
    content = {"text": b"hello" * 100, "short": content[:20]}.get(change, content)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be an HDF5 file"):
        mark_closed(path)
    assert path.read_bytes() == content
