"""Tests of the status of runs that grow, were resumed, were killed or are complete."""

import math
import os

import numpy as np
import pytest

from hpc_dasgd.storage.layout import RUN_FILE, rank_file
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import create_run
from hpc_dasgd.watch.text import screen_lines, status_line
from hpc_dasgd.watch.watcher import Watcher
from tests.unit import synthetic
from tests.unit.watch.runs import BUDGET, WRITTEN_S, read_status, write_run


@pytest.mark.parametrize("name", ["", RUN_FILE])
def test_the_status_of_a_growing_run_is_that_of_its_files(tmp_path, name):
    run = write_run(tmp_path)
    status = read_status(tmp_path / name)
    counts = [len(end) for end in run.end]
    assert (status.status, status.summary) == ("running", {})
    assert status.budget == {"gradients": 1000, "seconds": 900, "target_loss": 0.125}
    assert status.counts.tolist() == counts and status.gradients == 300
    assert status.elapsed_s == max(end[-1] for end in run.end)
    assert status.unchanged_s.tolist() == [1, 1, 1] and status.idle_s == 1
    assert status.evaluation == {"t_s": 2.0, "gradients": 20, "loss": 0.25, "accuracy": 0.875}
    losses = [rank + np.arange(max(0, n - 100), n).mean() / 1000 for rank, n in enumerate(counts)]
    assert status.loss == pytest.approx(np.mean(losses))
    rates = [(n - 3 * n // 4) / (end[-1] - end[3 * n // 4 - 1]) for n, end in zip(counts, run.end, strict=True)]
    np.testing.assert_allclose(status.rates, rates)
    by_gradients, by_seconds = 700 / sum(rates), 900 - status.elapsed_s
    assert status.remaining_s == pytest.approx(min(by_gradients, by_seconds))


def reference_staleness(run, every, until_s):
    """Return for each rank the mean number of gradients missed by its last 32 logged gradients."""
    means = []
    for ends, held in zip(run.end, run.held, strict=True):
        logged = [k for k in range(0, len(ends), every) if ends[k] <= until_s][-32:]
        missed = [sum(int((others < ends[k]).sum()) for others in run.end) - len(held[k]) for k in logged]
        means.append(np.mean(missed))
    return means


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("active", [True, False])
def test_staleness_is_the_mean_of_the_last_logged_gradients(tmp_path, every, active):
    run = write_run(tmp_path, n_ranks=4, every=every)
    # Gradients that an active rank has completed since it last wrote its log are unknown.
    until_s = min(end[-1] for end in run.end) if active else math.inf
    status = read_status(tmp_path, WRITTEN_S + (1 if active else 100))
    reference = reference_staleness(run, every, until_s)
    np.testing.assert_allclose(status.staleness, reference)
    assert status.mean_staleness == pytest.approx(np.average(reference, weights=status.rates))


def test_staleness_is_exact_if_not_all_times_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.watch.watcher._MAX_KEPT", 16)
    monkeypatch.setattr("hpc_dasgd.watch.watcher._MIN_KEPT", 16)
    run = write_run(tmp_path, n_ranks=2, n_gradients=400)
    since_s = max(end[-16] for end in run.end)
    found = read_status(tmp_path, WRITTEN_S + 100).staleness
    for rank in range(2):
        known = [k for k, end_s in enumerate(run.end[rank]) if end_s >= since_s]
        missed = [
            sum(int((others < run.end[rank][k]).sum()) for others in run.end) - len(run.held[rank][k]) for k in known
        ]
        assert found[rank] == pytest.approx(np.mean(missed))


def test_staleness_is_unknown_without_version_vectors(tmp_path):
    write_run(tmp_path, every=0)
    status = read_status(tmp_path)
    assert np.isnan(status.staleness).all()
    assert "staleness" not in status_line(status)


def test_a_run_with_empty_logs_has_a_status(tmp_path):
    create_run(tmp_path, config_toml="damaged [", attributes={"n_ranks": 2}, x0=np.zeros(2))
    status = read_status(tmp_path)
    assert (status.gradients, status.rate, status.budget, status.evaluation) == (0, 0, {}, None)
    with RankLog(tmp_path, LogSettings(0, 2, 1)):
        pass
    (tmp_path / rank_file(1)).touch()
    status = read_status(tmp_path)
    assert status.counts.tolist() == [0, 0]
    assert status_line(status) == "     0.0 s  gradients 0  0/s  slowest rank 0 (0/s)"
    assert len(screen_lines(status, 80, 20)) == 6


def test_each_status_includes_the_rows_written_since_the_last_one(writer):
    """The rank of `writer` computes 1,000 gradients per second of its time."""
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml=BUDGET, attributes={"n_ranks": 1}, x0=np.zeros(2))
    log.rename(writer.path)
    with Watcher(writer.directory) as watcher:
        now_s = os.stat(writer.path).st_mtime
        assert watcher.read_status(now_s).gradients == 1
        for n in range(1, 15):
            writer.append_1000(1000 * n)
            status = watcher.read_status(now_s + n)
            assert status.gradients == 1000 * n + 1
            assert status.loss == 1000 * n - 49.5
            assert status.evaluation["t_s"] == 1000 * n
            assert status.unchanged_s == [0]
            assert status.rates == pytest.approx([1000], rel=1e-3)
            assert status.staleness == [0]
        writer.kill()
        assert watcher.read_status(now_s + 100).unchanged_s == [86]
    assert read_status(writer.directory, now_s + 100).gradients == 14001


# The status of a run that was resumed.


@pytest.mark.parametrize("every", [1, 4])
def test_the_status_of_a_resumed_run_is_that_of_its_newest_generation(tmp_path, every):
    runs = [synthetic.schedule(n_ranks, 200, seed=n_ranks) for n_ranks in (4, 3)]
    expected = synthetic.write_generations(tmp_path, runs, every=every, config=BUDGET)
    status = read_status(
        tmp_path / "generation_00001", os.stat(tmp_path / "generation_00001" / RUN_FILE).st_mtime + 100
    )
    assert status.counts.tolist() == [len(end) for end in expected.end[:3]]
    assert (status.gradients, status.n_earlier) == (400, len(runs[0].end[3]))
    assert status.elapsed_s == max(end[-1] for end in expected.end)
    assert status.evaluation["gradients"] == 200
    np.testing.assert_allclose(status.staleness, reference_staleness(runs[1], 1, math.inf) if every == 1 else [
        np.mean(missed(expected, rank, len(runs[0].end[rank]), every)[-32:]) for rank in range(3)
    ])  # fmt: skip


def missed(run, rank, since, every):
    """Return the staleness, by its definition, of the logged gradients of a rank from number `since` on."""
    logged = [k for k in range(since, len(run.end[rank])) if k % every == 0]
    done = [sum(int((ends < run.end[rank][k]).sum()) for ends in run.end) for k in logged]
    return [n - int(run.versions[rank][k].sum()) for n, k in zip(done, logged, strict=True)]


def test_a_generation_that_begins_while_watching_is_followed(tmp_path):
    runs = [synthetic.schedule(n_ranks, 100, seed=n_ranks) for n_ranks in (2, 3)]
    expected = synthetic.resumed(runs)
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    with Watcher(tmp_path) as watcher:
        now_s = os.stat(tmp_path / rank_file(0)).st_mtime
        assert watcher.read_status(now_s).counts.tolist() == [len(end) for end in runs[0].end]
        synthetic.write_generation(tmp_path, 1, runs[1], expected.before[1], expected.begun_s[1])
        status = watcher.read_status(now_s + 10)
        assert status.counts.tolist() == [len(end) for end in expected.end] and status.gradients == 200
        assert status.elapsed_s == max(end[-1] for end in expected.end)


@pytest.mark.parametrize("first", [90, 100, 120])
def test_a_log_is_followed_into_its_next_part(tmp_path, first):
    """The next part begins before the end of the last one, at its end, or after rows that are lost."""
    run = synthetic.schedule(1, 300)
    create_run(tmp_path, config_toml="", attributes={"n_ranks": 1}, x0=np.zeros(2))
    now_s = os.stat(tmp_path / RUN_FILE).st_mtime
    with RankLog(tmp_path, LogSettings(0, 1, 1)) as log:
        synthetic.write_rows(log, 0, run, 0.0, 0, range(100))
    with Watcher(tmp_path) as watcher:
        assert watcher.read_status(now_s).gradients == 100
        (tmp_path / "aside").mkdir()
        run.versions[0] -= np.uint32(first)
        with RankLog(tmp_path / "aside", LogSettings(0, 1, 1), versions_before=np.array([first])) as log:
            synthetic.write_rows(log, 0, run, 0.0, 0, range(first, 300))
        (tmp_path / "aside" / rank_file(0)).rename(tmp_path / rank_file(0, 1))
        status = [watcher.read_status(now_s + n) for n in range(1, 4)][-1]
    assert status.gradients == 300 and status.staleness == [0]
    assert status.elapsed_s == run.end[0][-1]
