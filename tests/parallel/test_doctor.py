"""Tests of ``doctor`` on this machine, whose properties are known."""

import os

import pytest

from hpc_dasgd.doctor import examination


@pytest.mark.parallel([1, 2])
def test_no_check_is_wrong_and_calls_progress_as_expected(comm, tmp_path):
    found = {each.check: each for each in examination.examine(comm, tmp_path)}
    assert not [each for each in found.values() if each.status == "wrong"]
    assert found["launch"].detail.startswith(f"{comm.size} rank")
    assert (found["cores"].status == "ok") == (comm.size <= len(os.sched_getaffinity(0)))
    if comm.rank == 0:
        assert "libmpi" in found["MPI library"].detail
        assert found["files"].status == "ok"
        assert list(tmp_path.iterdir()) == []
        lines = examination.text(list(found.values())).splitlines()
        assert sum(line.startswith(("ok ", "slow ")) for line in lines) == len(found)
    if comm.rank == 0 and comm.size > 1:
        where = "other node" if os.environ.get("MPIR_CVAR_NOLOCAL") else "same node"
        assert found[f"consistent reads, {where}"].status == "ok"
        assert " 0 torn" in found[f"consistent reads, {where}"].detail
        # Reads never need MPI calls of the target here; accumulate does unless ranks share memory.
        assert found[f"read progress, {where}"].status == "ok"
        assert found[f"accumulate progress, {where}"].status == ("ok" if where == "same node" else "slow")


@pytest.mark.parallel([1])
def test_a_directory_that_does_not_exist_is_wrong(comm, tmp_path):
    (found,) = (each for each in examination.examine(comm, tmp_path / "missing") if each.check == "files")
    assert found.status == "wrong"
    assert "No such file or directory" in found.detail
