"""Tests of the checks of a launch, on surveys made up here."""

from dataclasses import replace

import pytest

from hpc_dasgd.runtime import launch_checks
from hpc_dasgd.runtime.launch_checks import GpuSurvey, LaunchSurvey

SURVEY = LaunchSurvey((0, 0), ["a", "a"], [4, 4], {0: 8}, ["1", "1"], [GpuSurvey(0, None, ())] * 2)
MPICH = "MPICH Version: 5.0.2"


def test_a_launch_on_one_node_with_enough_cores_is_ok():
    found = [launch_checks.check_placement(SURVEY), launch_checks.check_cores(SURVEY)]
    assert [(check.status, check.remedy) for check in found] == [("ok", "")] * 2
    assert found[0].detail == "2 ranks on 1 node: a (2)"


@pytest.mark.parametrize(
    ("threads", "cores", "status", "fragment"),
    [
        (["1", "1"], 2, "ok", "has a core of its own"),
        (["4", "4"], 8, "ok", "has a core of its own"),
        (["4", "4"], 4, "slow", "2 ranks on 4 cores of a (4 BLAS threads each): ranks will share cores"),
        (["1", "1"], 1, "slow", "2 ranks on 1 core of a (1 BLAS thread each): ranks will share cores"),
        (["all cores", "1"], 4, "slow", "2 ranks on 4 cores of a (5 BLAS threads in total): ranks will share cores"),
    ],
)
def test_more_blas_threads_than_cores_are_slow(threads, cores, status, fragment):
    check = launch_checks.check_cores(replace(SURVEY, blas_threads=threads, cores_of_nodes={0: cores}))
    assert check.status == status
    assert fragment in check.detail
    assert bool(check.remedy) == (status == "slow")


def test_a_launch_is_checked_for_its_ranks_and_hosts():
    alone = replace(SURVEY, nodes=(0,), hosts=["a"], cores=[4], blas_threads=["1"])
    assert "mpiexec" in launch_checks.check_placement(alone).remedy
    apart = replace(SURVEY, nodes=(0, 1), cores_of_nodes={0: 8, 1: 8})
    assert launch_checks.check_placement(apart).status == "slow"
    assert "share no memory" in launch_checks.check_placement(apart).detail
    many = replace(SURVEY, nodes=tuple(range(20)), hosts=[f"n{rank}" for rank in range(20)])
    assert launch_checks.check_placement(many).detail.endswith("n7 (1) ...")


def test_an_mpi_library_of_the_environment_is_slow_only_within_a_job():
    assert launch_checks.check_library(MPICH, "/venv/lib/libmpi.so", True, in_allocation=False).status == "ok"
    assert launch_checks.check_library(MPICH, "/opt/lib/libmpi.so", False, in_allocation=True).status == "ok"
    hidden = launch_checks.check_library(MPICH, "/venv/lib/libmpi.so", True, in_allocation=True)
    assert hidden.status == "slow"
    assert "without an extra" in hidden.remedy


GPUS = {
    "none": ([GpuSurvey(0, None, ())] * 2, None, ""),
    "one each": ([GpuSurvey(2, ["H200", "H200"], ("1", "2"))] * 2, "ok", "at least one per rank (H200)"),
    "bound to one each": (
        [GpuSurvey(2, ["H200"], ("1",)), GpuSurvey(2, ["H200"], ("2",))],
        "ok",
        "at least one per rank (H200)",
    ),
    "no CuPy": ([GpuSurvey(0, None, ()), GpuSurvey(2, None, ())], "slow", "2 GPUs on a, but CuPy is not installed"),
    "not seen": ([GpuSurvey(1, [], ())] * 2, "wrong", "CuPy finds none of 1 GPU on a"),
    "shared": ([GpuSurvey(1, ["H200"], ("1",))] * 2, "slow", "2 ranks share 1 GPU of a (H200)"),
}


@pytest.mark.parametrize(("gpus", "status", "detail"), GPUS.values(), ids=GPUS)
def test_gpus_are_checked_for_use_and_sharing(gpus, status, detail):
    found = launch_checks.check_gpus(replace(SURVEY, gpus=gpus))
    assert [check.status for check in found] == ([] if status is None else [status])
    for check in found:
        assert detail in check.detail
        assert (check.remedy == "") == (status == "ok")
