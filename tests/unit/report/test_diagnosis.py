"""Each warning appears when it should, and only then."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.report.diagnosis import warnings
from tests.unit import synthetic


def lockstep(n_ranks=3, n_each=200, delay=lambda k: 1):
    """A run in which all ranks step together and gradient ``k`` holds what others had ``delay(k)`` steps before."""
    k = np.arange(n_each)
    held = np.maximum(k - [delay(i) for i in k], 0)
    versions = [np.repeat(held[:, np.newaxis], n_ranks, axis=1).astype(np.uint32) for _ in range(n_ranks)]
    for rank, vectors in enumerate(versions):
        vectors[:, rank] = k
    times = [k + rank / 100 for rank in range(n_ranks)]
    return SimpleNamespace(start=times, end=[t + 0.5 for t in times], versions=versions, n_ranks=n_ranks)


def cut(schedule, rank, n):
    """Let a rank end after `n` gradients."""
    for columns in (schedule.start, schedule.end, schedule.versions):
        columns[rank] = columns[rank][:n]
    for vectors in schedule.versions:
        np.minimum(vectors[:, rank], n, out=vectors[:, rank])
    return schedule


@pytest.fixture
def found(tmp_path):
    """Makes a run and returns its warnings."""

    def make(schedule, bound=None, *, dropped_reads=0, complete=True, every=1, config=""):
        summary = {"seconds": 1.0, "dropped_reads": dropped_reads} if complete else None
        run = open_run(synthetic.write_run(tmp_path / "run", schedule, every, config=config, summary=summary))
        return warnings(run, bound)

    return make


def test_a_good_run_has_none(found):
    good = {"condition_met": True}
    assert found(lockstep(), {"A": good, "B": good, "stepsize": 0.1}, dropped_reads=6) == []


@pytest.mark.parametrize("n_each", [0, 1, 3])
def test_a_run_of_few_gradients_has_none(found, n_each):
    assert found(lockstep(n_each=n_each)) == []


def test_one_rank_has_none(found):
    assert found(lockstep(n_ranks=1)) == []


def test_warnings_of_the_log_come_first(found):
    schedule = lockstep()
    for rank in (0, 2):
        schedule.versions[rank][:, 1] = 0
    warned = found(schedule, complete=False)
    assert warned[0] == "the run is not complete: it is going on, or was killed"
    assert len(warned) > 1


def test_a_rank_that_nobody_heard(found):
    schedule = lockstep()
    for rank in (0, 2):
        schedule.versions[rank][:, 1] = 0
    warned = found(schedule)
    assert "no other rank ever held an update of rank 1: is the overlay connected?" in warned


def test_independent_ranks_hear_nobody(found):
    schedule = lockstep(delay=lambda k: k)
    assert [text for text in found(schedule, config='[exchange]\nkind = "none"\n') if "ever held" in text] == []


@pytest.mark.parametrize("every", [0, 10])
def test_with_few_vectors_a_good_run_stays_good(found, every):
    assert [text for text in found(lockstep(), every=every) if "one gradient in" not in text] == []


def test_staleness_that_grows(found):
    (warned,) = found(lockstep(delay=lambda k: 1 + k // 20))
    assert warned.startswith("staleness grew: ")


def test_staleness_that_varies_does_not_grow(found):
    rng = np.random.default_rng(3)
    delays = rng.integers(0, 6, 200)
    assert found(lockstep(delay=lambda k: delays[k])) == []


def test_staleness_that_only_begins_low_does_not_grow(found):
    assert found(lockstep(delay=lambda k: min(k // 5, 8))) == []


def test_dropped_reads(found):
    (warned,) = found(lockstep(), dropped_reads=7)
    assert warned.startswith("7 reads were dropped, 1.2% of the gradients")


def test_a_rank_that_stopped_early(found):
    assert found(cut(lockstep(), 2, 150)) == ["rank 2 stopped early: after 149.5 s, the last rank after 199.5 s"]


def test_a_rank_that_ended_a_little_before_the_others(found):
    assert found(cut(lockstep(), 2, 190)) == []


def test_a_slow_rank_did_not_stop(found):
    schedule = lockstep()
    schedule = cut(schedule, 2, 12)
    schedule.start[2], schedule.end[2] = np.arange(12) * 15.0, np.arange(12) * 15.0 + 14
    schedule.versions[0][:, 2] = schedule.versions[1][:, 2] = 0
    assert not [text for text in found(schedule) if "stopped" in text]


def test_a_rank_without_gradients(found):
    assert found(cut(lockstep(), 1, 0)) == ["rank 1 made no gradients"]


def test_a_server_needs_no_gradients(found):
    serves = '[exchange]\nkind = "server"\nserver_computes = false\n'
    warned = found(cut(lockstep(), 0, 0), config=serves)
    assert not [text for text in warned if "no gradients" in text]


def test_a_stepsize_beyond_the_bound(found):
    bound = {"stepsize": 0.5, "A": {"condition_met": True}, "B": {"condition_met": False}}
    assert found(lockstep(), bound) == ["the stepsize 0.5 is above what bound B asks for"]


def test_of_many_ranks_some_are_named(tmp_path):
    run = open_run(synthetic.write_run(tmp_path / "run", lockstep(n_ranks=12, n_each=20), summary={"seconds": 1.0}))
    late = dataclasses.replace(run)
    late.__dict__["gradients"] = run.gradients.copy()
    late.gradients["t_end_s"][run.rows(11)] += np.arange(20) ** 3
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 3 more stopped early: after" in " ".join(warnings(late))
