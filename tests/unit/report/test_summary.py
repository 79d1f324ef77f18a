"""Summaries and plots of complete, killed and resumed runs."""

import dataclasses
import re

import h5py
import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.report.page import write_page
from hpc_dasgd.report.plots import write_plots
from hpc_dasgd.report.summary import summary
from tests.unit import synthetic

ALWAYS = ["loss_seconds.png", "loss_gradients.png", "timeline.png", "activity.png", "progress.png"]
WITH_VERSIONS = ["staleness.png", "staleness_time.png"]
WITH_SEVERAL_RANKS = ["missed.png", "behind.png"]
ATTRIBUTES = {"seconds": 50.0, "drift": 1.5e-7, "dropped_reads": 2, "clock_error_s": 2e-6}


def write_run(directory, n_ranks=3, every=1, complete=True, evaluated=True, n_gradients=300):
    hosts = ["north"] * (n_ranks - 1) + ["south"]
    evaluations = [(1.0, 10, 0.75, 0.5), (2.0, 20, 0.25, 0.875), (3.0, 30, 0.5, 0.625)]
    synthetic.write_run(
        directory,
        synthetic.schedule(n_ranks, n_gradients, seed=2),
        every,
        attributes={"hosts": hosts, "mpi_library": "MPI of the test"},
        loss=lambda rank, k: 2 / (k + 1),
        evaluations=evaluations if evaluated else (),
        summary=ATTRIBUTES if complete else None,
    )
    return open_run(directory)


def is_drawn(path):
    """Return whether a file is an image of more than one colour."""
    from matplotlib.image import imread

    pixels = imread(path)
    return pixels.shape[0] > 300 and pixels.shape[1] > 500 and np.ptp(pixels[..., :3]) == 1.0


def test_the_summary_contains_results_ranks_and_hosts(tmp_path):
    run = write_run(tmp_path)
    text = re.sub(" +", " ", summary(run))
    numbers = run.staleness().as_dict()
    hosts = enumerate(["north", "north", "south"])
    table = [f" {rank} {run.counts[rank]} {run.counts[rank] / 50:.4g}/s {host}" for rank, host in hosts]
    for line in (
        f"run: {tmp_path} (complete)",
        "ranks: 3 on north (2), south (1)",
        "MPI: MPI of the test",
        "gradients: 300 in 50.0 s, 6/s",
        "loss: 0.5, best 0.25 after 2.0 s",
        "accuracy: 0.625, best 0.875 after 2.0 s",
        f"staleness: S_avg {numbers['S_avg']:.4g} S_rms {numbers['S_rms']:.4g} S_max {numbers['S_max']}",
        "drift: 1.5e-07",
        "dropped reads: 2",
        *table,
    ):
        assert line in text.splitlines()
    assert "warning" not in text


def test_the_summary_contains_results_of_particular_exchanges_if_they_are_logged(tmp_path):
    run = write_run(tmp_path)
    assert not re.search("consensus|transferred|exchanges", summary(run))
    known = {"consensus_distance": 0.125, "transferred_bytes": [1_000_000, 2_000_000, 6_000_000]}
    intervals = np.zeros(3, [("rank", "i4"), ("t_s", "f8"), ("version", "u4"), ("every", "u4"), ("overhead", "f8")])
    intervals["rank"], intervals["every"], intervals["overhead"] = [0, 0, 2], [9, 2, 5], [0.5, 0.05, 0.0875]
    run = dataclasses.replace(run, attributes=run.attributes | known)
    run.__dict__["exchange_intervals"] = intervals  # the value of the cached property
    text = re.sub(" +", " ", summary(run)).splitlines()
    assert "consensus: 0.125 (root mean squared distance from the mean)" in text
    assert "transferred: 3 MB per rank" in text
    assert "exchanges: every 1 to 5 steps at the end, overhead at most 8.8% when last changed" in text


def test_the_summary_of_a_killed_run_leaves_out_unknown_results(tmp_path):
    run = write_run(tmp_path, every=0, complete=False, evaluated=False)
    text = summary(run)
    seconds = run.gradients["t_end_s"].max() - run.gradients["t_start_s"].min()
    assert f"{300 / seconds:.4g}/s" in text
    assert "warning: the run is not complete" in text
    assert not re.search("^(loss|accuracy|staleness|drift)", text, re.MULTILINE)


def test_the_table_of_ranks_is_limited(tmp_path):
    run = write_run(tmp_path, n_ranks=40)
    text = summary(run)
    assert f"8 more ranks with {run.counts[32:].min()} to {run.counts[32:].max()} gradients each" in text
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ALWAYS + WITH_VERSIONS + WITH_SEVERAL_RANKS),
        (
            {"n_ranks": 64, "every": 10, "evaluated": False, "n_gradients": 640},
            ALWAYS + WITH_VERSIONS + WITH_SEVERAL_RANKS,
        ),
        ({"n_ranks": 1, "n_gradients": 1, "complete": False}, ALWAYS + WITH_VERSIONS),
        ({"every": 0}, ALWAYS),
    ],
)
def test_plots_are_written_as_images(tmp_path, options, names):
    directory = tmp_path / "a" / "plots"
    paths = write_plots(write_run(tmp_path / "run", **options), directory)
    assert {path.name for path in paths} == set(names)
    assert sorted(directory.iterdir()) == sorted(paths)
    assert all(is_drawn(path) for path in paths)


def test_a_run_without_gradients_has_a_summary_and_no_plots(tmp_path):
    run = write_run(tmp_path / "run", n_gradients=0, complete=False, evaluated=False)
    assert "gradients: 0 in 0.0 s" in re.sub(" +", " ", summary(run))
    assert write_plots(run, tmp_path / "plots") == []


def test_a_directory_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").touch()
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"cannot write plots to .*/file/plots: Not a directory"):
        write_plots(run, tmp_path / "file" / "plots")


@pytest.mark.parametrize("kind", ["whole", "lost rows"])
def test_a_resumed_run_is_reported(tmp_path, kind):
    runs = [synthetic.schedule(n_ranks, 200, seed=n_ranks) for n_ranks in (3, 4, 2)]
    kept = [[len(end) for end in runs[0].end], [len(end) - 5 for end in runs[1].end]]
    expected = synthetic.write_generations(tmp_path / "run", runs, kept)
    with h5py.File(tmp_path / "run" / "generation_00001" / "run.h5", "r+") as file:
        file.attrs["status"] = "stopped"
    if kind == "lost rows":
        (tmp_path / "run" / "rank_00001.h5").unlink()
    run = open_run(tmp_path / "run")
    assert run.lost_work() == [0, 20]
    text = summary(run)
    n_lost = len(runs[0].end[1])
    assert ("staleness:" in text) == (kind == "whole")
    assert (f"{n_lost} gradients of rank 1 are missing from its log" in text) == (kind == "lost rows")
    first, second = expected.begun_s[1:]
    assert (
        f"3, interrupted at {first:.1f} s (killed, 0 gradients lost, continued with 4 ranks), "
        f"at {second:.1f} s (stopped by a signal, 20 gradients lost, continued with 2 ranks)"
    ) in text
    assert "stopped early" not in text
    paths = write_plots(run, tmp_path / "out")
    expected_names = ALWAYS + (WITH_VERSIONS + WITH_SEVERAL_RANKS if kind == "whole" else [])
    assert sorted(path.name for path in paths) == sorted(expected_names)
    assert all(map(is_drawn, paths))
    assert write_page(run, paths, tmp_path / "out").stat().st_size > 10_000
