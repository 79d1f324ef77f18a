"""What measurements made up mean."""

from dataclasses import replace

import pytest

from hpc_dasgd.doctor import checks
from hpc_dasgd.doctor.measurements import SLEEP_S, Gpus, Link, Measurements

FOUND = Measurements((0, 0), ["a", "a"], [4, 4], {0: 8}, ["1", "1"], [Gpus(0, None, ())] * 2)
LINK = Link(1, True, 2e-6, 4e-6, 8e9, 4e9, 8e9, 1e-4, 1e-3, 500, 20, 0)
MPICH = "MPICH Version: 5.0.2"


def by_name(found, library=MPICH):
    return {check.check: check for check in checks.window_checks(found, library)}


def test_a_good_node_is_ok():
    found = replace(FOUND, links=[LINK])
    every = [checks.launch_check(found), checks.cores_check(found), *checks.window_checks(found, MPICH)]
    assert [(check.status, check.remedy) for check in every] == [("ok", "")] * 7
    assert every[0].detail == "2 ranks on 1 node: a (2)"
    assert by_name(found)["speed, same node"].detail == (
        "read: 2.0 us, 8.00 GB/s (1.00 of memcpy); accumulate: 4.0 us, 4.00 GB/s"
    )


def test_slow_shared_memory_is_slow_and_a_slow_network_is_not():
    slow = replace(LINK, get_bytes_per_s=3e9)
    assert by_name(replace(FOUND, links=[slow]))["speed, same node"].status == "slow"
    far = replace(slow, same_node=False)
    assert by_name(replace(FOUND, links=[far]))["speed, other node"].status == "ok"


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        (MPICH, "MPIR_CVAR_ASYNC_PROGRESS"),
        ("Open MPI v5.0.11", "OMPI_MCA_osc"),
        ("Intel(R) MPI Library 2021.18", "FI_PROVIDER"),
        ("Another MPI", "RDMA"),
    ],
)
def test_a_call_that_waits_for_its_target_needs_help(library, advice):
    link = replace(LINK, same_node=False, asleep_accumulate_s=SLEEP_S)
    found = by_name(replace(FOUND, links=[link]), library)
    assert found["read alone, other node"].status == "ok"
    waiting = found["accumulate alone, other node"]
    assert waiting.status == "slow"
    assert "needs the target's help" in waiting.detail
    assert advice in waiting.remedy
    assert "`exchange.kind` read" in waiting.remedy


def test_torn_reads_and_missing_windows_are_wrong():
    assert by_name(replace(FOUND, links=[replace(LINK, n_torn=1)]))["whole reads, same node"].status == "wrong"
    (check,) = checks.window_checks(replace(FOUND, window_error="no unified memory model"), MPICH)
    assert (check.status, check.detail) == ("wrong", "no unified memory model")


@pytest.mark.parametrize(
    ("threads", "cores", "status", "fragment"),
    [
        (["1", "1"], 2, "ok", "cores of their own"),
        (["4", "4"], 8, "ok", "cores of their own"),
        (["4", "4"], 4, "slow", "2 ranks with 8 BLAS threads on 4 cores of a"),
        (["1", "1"], 1, "slow", "2 ranks with 2 BLAS threads on 1 core of a"),
        (["all cores", "1"], 4, "slow", "2 ranks with 5 BLAS threads on 4 cores of a"),
    ],
)
def test_ranks_and_threads_are_held_against_cores(threads, cores, status, fragment):
    check = checks.cores_check(replace(FOUND, blas_threads=threads, cores_of_nodes={0: cores}))
    assert check.status == status
    assert fragment in check.detail
    assert bool(check.remedy) == (status == "slow")


def test_launches():
    alone = replace(FOUND, nodes=(0,), hosts=["a"], cores=[4], blas_threads=["1"])
    assert "mpiexec" in checks.launch_check(alone).remedy
    apart = replace(FOUND, nodes=(0, 1), cores_of_nodes={0: 8, 1: 8})
    assert checks.launch_check(apart).status == "slow"
    assert "share no memory" in checks.launch_check(apart).detail
    many = replace(FOUND, nodes=tuple(range(20)), hosts=[f"n{rank}" for rank in range(20)])
    assert checks.launch_check(many).detail.endswith("n7 (1) ...")


def test_a_packaged_mpi_is_slow_inside_an_allocation_alone():
    assert checks.library_check(MPICH, "/venv/lib/libmpi.so", True, in_allocation=False).status == "ok"
    assert checks.library_check(MPICH, "/opt/lib/libmpi.so", False, in_allocation=True).status == "ok"
    hidden = checks.library_check(MPICH, "/venv/lib/libmpi.so", True, in_allocation=True)
    assert hidden.status == "slow"
    assert "without the extra" in hidden.remedy


def test_files():
    assert checks.disk_check("/scratch", 0.01, "").status == "ok"
    assert checks.disk_check("/scratch", 3.0, "").status == "slow"
    broken = checks.disk_check("/scratch", 0.01, "no locks available")
    assert broken.status == "wrong"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in broken.remedy


GPUS = {
    "none": ([Gpus(0, None, ())] * 2, None, ""),
    "one each": ([Gpus(2, ["H200", "H200"], ("1", "2"))] * 2, "ok", "one or more for each rank (H200)"),
    "bound to one each": (
        [Gpus(2, ["H200"], ("1",)), Gpus(2, ["H200"], ("2",))],
        "ok",
        "one or more for each rank (H200)",
    ),
    "no CuPy": ([Gpus(0, None, ()), Gpus(2, None, ())], "slow", "2 GPUs on a, and no CuPy"),
    "not seen": ([Gpus(1, [], ())] * 2, "wrong", "CuPy sees none of 1 GPU on a"),
    "shared": ([Gpus(1, ["H200"], ("1",))] * 2, "slow", "2 ranks share 1 GPU of a (H200)"),
}


@pytest.mark.parametrize(("gpus", "status", "detail"), GPUS.values(), ids=GPUS)
def test_gpus(gpus, status, detail):
    found = checks.gpu_checks(replace(FOUND, gpus=gpus))
    assert [check.status for check in found] == ([] if status is None else [status])
    for check in found:
        assert detail in check.detail
        assert (check.remedy == "") == (status == "ok")
