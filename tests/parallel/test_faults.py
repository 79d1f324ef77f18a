"""A short form of ``jobs/benchmarks/faults``: one trial of each kind of fault."""

import pytest

from jobs.benchmarks.faults import damage, trials

SEED = 1


@pytest.mark.parametrize("number", range(13))
def test_nothing_wrong_is_accepted_and_little_is_lost(tmp_path, number):
    assert len(trials.KINDS) == 13
    mounts = damage.may_mount(tmp_path / "tried")
    found = trials.perform(number, SEED, tmp_path / "trial", mounts, every_s=(0.2, 0.3))
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert not found["wrong"], found
    assert found["refused"] or found["resumed"] or found["kind"] == "killed at the start", found
