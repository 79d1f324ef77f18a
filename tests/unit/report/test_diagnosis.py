"""Conditions under which each warning about a run appears."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.report.diagnosis import warnings
from tests.unit import synthetic


def lockstep(n_ranks=3, n_each=200, delay=lambda k: 1):
    """Return a run of synchronous steps; replicas of step ``k`` lack the last ``delay(k)`` updates of other ranks."""
    k = np.arange(n_each)
    n_held = np.maximum(k - [delay(i) for i in k], 0)
    versions = [np.repeat(n_held[:, np.newaxis], n_ranks, axis=1).astype(np.uint32) for _ in range(n_ranks)]
    for rank, vectors in enumerate(versions):
        vectors[:, rank] = k
    times = [k + rank / 100 for rank in range(n_ranks)]
    return SimpleNamespace(start=times, end=[t + 0.5 for t in times], versions=versions, n_ranks=n_ranks)


def cut(schedule, rank, n):
    """Remove all but the first `n` gradients of a rank."""
    for columns in (schedule.start, schedule.end, schedule.versions):
        columns[rank] = columns[rank][:n]
    for vectors in schedule.versions:
        np.minimum(vectors[:, rank], n, out=vectors[:, rank])
    return schedule


@pytest.fixture
def warnings_of(tmp_path):
    """Return a function that writes a run and returns its warnings."""

    def make(schedule, bound=None, *, dropped_reads=0, complete=True, every=1, config=""):
        summary = {"seconds": 1.0, "dropped_reads": dropped_reads} if complete else None
        run = open_run(synthetic.write_run(tmp_path / "run", schedule, every, config=config, summary=summary))
        return warnings(run, bound)

    return make


def test_a_run_without_problems_has_no_warnings(warnings_of):
    good = {"condition_met": True}
    assert warnings_of(lockstep(), {"A": good, "B": good, "stepsize": 0.1}, dropped_reads=6) == []


@pytest.mark.parametrize("n_each", [0, 1, 3])
def test_a_run_with_few_gradients_has_no_warnings(warnings_of, n_each):
    assert warnings_of(lockstep(n_each=n_each)) == []


def test_a_run_on_one_rank_has_no_warnings(warnings_of):
    assert warnings_of(lockstep(n_ranks=1)) == []


def test_warnings_of_the_log_come_first(warnings_of):
    schedule = lockstep()
    for rank in (0, 2):
        schedule.versions[rank][:, 1] = 0
    warned = warnings_of(schedule, complete=False)
    assert warned[0] == "the run is not complete: it is still running, or it was killed"
    assert len(warned) > 1


def test_a_rank_whose_updates_no_other_rank_held_gives_a_warning(warnings_of):
    schedule = lockstep()
    for rank in (0, 2):
        schedule.versions[rank][:, 1] = 0
    warned = warnings_of(schedule)
    assert "no other rank ever held an update of rank 1: is the overlay connected?" in warned


def test_independent_models_give_no_warning_about_updates_that_were_not_read(warnings_of):
    schedule = lockstep(delay=lambda k: k)
    assert [text for text in warnings_of(schedule, config='[exchange]\nkind = "none"\n') if "ever held" in text] == []


@pytest.mark.parametrize("every", [0, 10])
def test_a_run_with_few_logged_vectors_has_no_further_warnings(warnings_of, every):
    assert [text for text in warnings_of(lockstep(), every=every) if "one gradient in" not in text] == []


def test_growing_staleness_gives_a_warning(warnings_of):
    (warned,) = warnings_of(lockstep(delay=lambda k: 1 + k // 20))
    assert warned.startswith("staleness grew: ")


def test_varying_staleness_gives_no_warning(warnings_of):
    rng = np.random.default_rng(3)
    delays = rng.integers(0, 6, 200)
    assert warnings_of(lockstep(delay=lambda k: delays[k])) == []


def test_staleness_that_grows_only_at_the_start_gives_no_warning(warnings_of):
    assert warnings_of(lockstep(delay=lambda k: min(k // 5, 8))) == []


def test_many_dropped_reads_give_a_warning(warnings_of):
    (warned,) = warnings_of(lockstep(), dropped_reads=7)
    assert warned.startswith("7 reads were dropped, 1.2% of the gradients")


def test_a_rank_that_stopped_early_gives_a_warning(warnings_of):
    assert warnings_of(cut(lockstep(), 2, 150)) == ["rank 2 stopped early: after 149.5 s, the last rank after 199.5 s"]


def test_a_rank_that_ended_shortly_before_the_others_gives_no_warning(warnings_of):
    assert warnings_of(cut(lockstep(), 2, 190)) == []


def test_a_slow_rank_is_not_taken_for_one_that_stopped(warnings_of):
    schedule = lockstep()
    schedule = cut(schedule, 2, 12)
    schedule.start[2], schedule.end[2] = np.arange(12) * 15.0, np.arange(12) * 15.0 + 14
    schedule.versions[0][:, 2] = schedule.versions[1][:, 2] = 0
    assert not [text for text in warnings_of(schedule) if "stopped" in text]


def test_a_rank_without_gradients_gives_a_warning(warnings_of):
    assert warnings_of(cut(lockstep(), 1, 0)) == ["rank 1 made no gradients"]


def test_a_server_without_gradients_gives_no_warning(warnings_of):
    serves = '[exchange]\nkind = "server"\nserver_computes = false\n'
    warned = warnings_of(cut(lockstep(), 0, 0), config=serves)
    assert not [text for text in warned if "no gradients" in text]


def test_a_stepsize_above_the_condition_of_a_bound_gives_a_warning(warnings_of):
    bound = {"stepsize": 0.5, "A": {"condition_met": True}, "B": {"condition_met": False}}
    assert warnings_of(lockstep(), bound) == ["the stepsize 0.5 is above the largest for which bound B holds"]


def test_a_warning_names_at_most_eight_ranks(tmp_path):
    run = open_run(synthetic.write_run(tmp_path / "run", lockstep(n_ranks=12, n_each=20), summary={"seconds": 1.0}))
    late = dataclasses.replace(run)
    late.__dict__["gradients"] = run.gradients.copy()
    late.gradients["t_end_s"][run.rows(11)] += np.arange(20) ** 3
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 3 more stopped early: after" in " ".join(warnings(late))
