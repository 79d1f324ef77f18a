"""A short form of ``jobs/faults``: one trial of each kind of fault."""

from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "faults"
SEED = 1


@pytest.fixture(scope="module")
def job():
    """The modules of the job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(JOB)
        import damage
        import trials

        yield damage, trials


@pytest.mark.parametrize("number", range(13))
def test_nothing_wrong_is_accepted_and_little_is_lost(job, tmp_path, number):
    damage, trials = job
    assert len(trials.KINDS) == 13
    mounts = damage.may_mount(tmp_path / "tried")
    found = trials.perform(number, SEED, tmp_path / "trial", mounts, every_s=(0.2, 0.3))
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert not found["wrong"], found
    assert found["refused"] or found["resumed"] or found["kind"] == "killed at the start", found
