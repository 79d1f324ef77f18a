"""What the survey of a launch, made up here, means."""

from dataclasses import replace

import pytest

from hpc_dasgd.runtime import launch_checks
from hpc_dasgd.runtime.launch_checks import GpuSurvey, LaunchSurvey

FOUND = LaunchSurvey((0, 0), ["a", "a"], [4, 4], {0: 8}, ["1", "1"], [GpuSurvey(0, None, ())] * 2)
MPICH = "MPICH Version: 5.0.2"


def test_a_good_launch_is_ok():
    found = [launch_checks.launch_check(FOUND), launch_checks.cores_check(FOUND)]
    assert [(check.status, check.remedy) for check in found] == [("ok", "")] * 2
    assert found[0].detail == "2 ranks on 1 node: a (2)"


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
    check = launch_checks.cores_check(replace(FOUND, blas_threads=threads, cores_of_nodes={0: cores}))
    assert check.status == status
    assert fragment in check.detail
    assert bool(check.remedy) == (status == "slow")


def test_launches():
    alone = replace(FOUND, nodes=(0,), hosts=["a"], cores=[4], blas_threads=["1"])
    assert "mpiexec" in launch_checks.launch_check(alone).remedy
    apart = replace(FOUND, nodes=(0, 1), cores_of_nodes={0: 8, 1: 8})
    assert launch_checks.launch_check(apart).status == "slow"
    assert "share no memory" in launch_checks.launch_check(apart).detail
    many = replace(FOUND, nodes=tuple(range(20)), hosts=[f"n{rank}" for rank in range(20)])
    assert launch_checks.launch_check(many).detail.endswith("n7 (1) ...")


def test_a_packaged_mpi_is_slow_inside_an_allocation_alone():
    assert launch_checks.library_check(MPICH, "/venv/lib/libmpi.so", True, in_allocation=False).status == "ok"
    assert launch_checks.library_check(MPICH, "/opt/lib/libmpi.so", False, in_allocation=True).status == "ok"
    hidden = launch_checks.library_check(MPICH, "/venv/lib/libmpi.so", True, in_allocation=True)
    assert hidden.status == "slow"
    assert "without the extra" in hidden.remedy


GPUS = {
    "none": ([GpuSurvey(0, None, ())] * 2, None, ""),
    "one each": ([GpuSurvey(2, ["H200", "H200"], ("1", "2"))] * 2, "ok", "one or more for each rank (H200)"),
    "bound to one each": (
        [GpuSurvey(2, ["H200"], ("1",)), GpuSurvey(2, ["H200"], ("2",))],
        "ok",
        "one or more for each rank (H200)",
    ),
    "no CuPy": ([GpuSurvey(0, None, ()), GpuSurvey(2, None, ())], "slow", "2 GPUs on a, and no CuPy"),
    "not seen": ([GpuSurvey(1, [], ())] * 2, "wrong", "CuPy sees none of 1 GPU on a"),
    "shared": ([GpuSurvey(1, ["H200"], ("1",))] * 2, "slow", "2 ranks share 1 GPU of a (H200)"),
}


@pytest.mark.parametrize(("gpus", "status", "detail"), GPUS.values(), ids=GPUS)
def test_gpus(gpus, status, detail):
    found = launch_checks.gpu_checks(replace(FOUND, gpus=gpus))
    assert [check.status for check in found] == ([] if status is None else [status])
    for check in found:
        assert detail in check.detail
        assert (check.remedy == "") == (status == "ok")
