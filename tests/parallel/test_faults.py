"""One short trial of ``jobs/benchmarks/faults`` for each kind of fault."""

import pytest

from jobs.benchmarks.faults import damage, trials

SEED = 1
N_KINDS = 13


@pytest.mark.parametrize("number", range(N_KINDS))
def test_run_resumes_from_the_newest_undamaged_checkpoints_after_a_fault(tmp_path, number):
    assert len(trials.KINDS) == N_KINDS
    can_mount = damage.can_mount(tmp_path / "tried")
    found = trials.perform(number, SEED, tmp_path / "trial", can_mount, every_s=(0.2, 0.3))
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert not found["wrong"], found
    assert found["refused"] or found["resumed"] or found["kind"] == "killed at the start", found
