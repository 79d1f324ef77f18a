"""The doctor on this machine, of which all is known that it may find."""

import os

import pytest

from hpc_dasgd.doctor import examination


@pytest.mark.parallel([1, 2])
def test_shared_memory_is_found_to_be_good(comm, tmp_path):
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
        assert found[f"whole reads, {where}"].status == "ok"
        assert " 0 torn" in found[f"whole reads, {where}"].detail
        # Reads never need the target here; additions do where ranks share no memory.
        assert found[f"read alone, {where}"].status == "ok"
        assert found[f"accumulate alone, {where}"].status == ("ok" if where == "same node" else "slow")


@pytest.mark.parallel([1])
def test_a_place_without_room_is_wrong(comm, tmp_path):
    (found,) = (each for each in examination.examine(comm, tmp_path / "missing") if each.check == "files")
    assert found.status == "wrong"
    assert "No such file or directory" in found.detail
