"""Tests of the interpretation of measurements, on measurements made up here."""

from dataclasses import replace

import pytest

from hpc_dasgd.doctor import checks
from hpc_dasgd.doctor.measurements import SLEEP_S, Link, Measurements
from hpc_dasgd.runtime.launch_checks import GpuSurvey, LaunchSurvey

SURVEY = LaunchSurvey((0, 0), ["a", "a"], [4, 4], {0: 8}, ["1", "1"], [GpuSurvey(0, None, ())] * 2)
MEASURED = Measurements(SURVEY)
LINK = Link(1, True, 2e-6, 4e-6, 8e9, 4e9, 8e9, 1e-4, 1e-3, 500, 20, 0)
MPICH = "MPICH Version: 5.0.2"


def by_name(found, library=MPICH):
    return {check.check: check for check in checks.window_checks(found, library)}


def test_good_measurements_are_ok():
    found = replace(MEASURED, links=[LINK])
    every = checks.window_checks(found, MPICH)
    assert [(check.status, check.remedy) for check in every] == [("ok", "")] * 5
    assert by_name(found)["speed, same node"].detail == (
        "read: 2.0 us, 8.00 GB/s (1.00 of memcpy); accumulate: 4.0 us, 4.00 GB/s"
    )


def test_low_bandwidth_is_reported_as_slow_only_within_a_node():
    slow = replace(LINK, get_bytes_per_s=3e9)
    assert by_name(replace(MEASURED, links=[slow]))["speed, same node"].status == "slow"
    far = replace(slow, same_node=False)
    assert by_name(replace(MEASURED, links=[far]))["speed, other node"].status == "ok"


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        (MPICH, "MPIR_CVAR_ASYNC_PROGRESS"),
        ("Open MPI v5.0.11", "OMPI_MCA_osc"),
        ("Intel(R) MPI Library 2021.18", "FI_PROVIDER"),
        ("Another MPI", "RDMA"),
    ],
)
def test_a_call_that_waits_for_its_target_is_slow(library, advice):
    link = replace(LINK, same_node=False, asleep_accumulate_s=SLEEP_S)
    found = by_name(replace(MEASURED, links=[link]), library)
    assert found["read progress, other node"].status == "ok"
    waiting = found["accumulate progress, other node"]
    assert waiting.status == "slow"
    assert "completes only when the target calls MPI" in waiting.detail
    assert advice in waiting.remedy
    assert "`exchange.kind` read" in waiting.remedy


def test_torn_reads_and_unusable_windows_are_wrong():
    assert by_name(replace(MEASURED, links=[replace(LINK, n_torn=1)]))["consistent reads, same node"].status == "wrong"
    (check,) = checks.window_checks(replace(MEASURED, window_error="no unified memory model"), MPICH)
    assert (check.status, check.detail) == ("wrong", "no unified memory model")


def test_files_are_checked_for_errors_and_speed():
    assert checks.disk_check("/scratch", 0.01, "").status == "ok"
    assert checks.disk_check("/scratch", 3.0, "").status == "slow"
    broken = checks.disk_check("/scratch", 0.01, "no locks available")
    assert broken.status == "wrong"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in broken.remedy
