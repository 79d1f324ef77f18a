"""Staleness of a run as text."""

from types import SimpleNamespace

import numpy as np

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.config.settings import load_config
from hpc_dasgd.report.staleness_table import staleness_table, staleness_text
from tests.unit import synthetic


def test_the_table_equals_one_that_was_computed_by_hand():
    # Rank 0 misses nothing; rank 1 reads nothing and misses 1, 2, 3, 4 gradients.
    starts = [np.arange(5.0), np.arange(4.0) + 0.1]
    versions = [np.array([[k, k] for k in range(5)]), np.array([[0, k] for k in range(4)])]
    run = SimpleNamespace(start=starts, end=[times + 0.2 for times in starts], versions=versions)
    assert staleness_table(synthetic.measured(run)).splitlines() == [
        "9 gradients on 2 ranks",
        "S_avg 1.111  S_rms 1.826  S_max 4  W_max 10",
        "between models: mean 1.58, max 4",
        "percentiles: 25 % 0, 50 % 0, 75 % 2, 90 % 3.2, 99 % 3.92",
        "",
        "staleness  gradients",
        "        0          5  55.6%  " + 40 * "#",
        "        1          1  11.1%  " + 8 * "#",
        "        2          1  11.1%  " + 8 * "#",
        "        3          1  11.1%  " + 8 * "#",
        "        4          1  11.1%  " + 8 * "#",
        "",
        "rank  gradients  S_avg  S_rms  S_max  missed by others",
        "   0          5      0      0      0                10",
        "   1          4    2.5  2.739      4                 0",
    ]


def test_a_long_table_is_cut_and_a_rank_without_gradients_has_dashes():
    run = synthetic.schedule(40, 300, seed=1)
    run.start[7], run.end[7], run.versions[7] = run.start[7][:0], run.end[7][:0], run.versions[7][:0]
    lines = staleness_table(synthetic.measured(run)).splitlines()
    assert lines[-1].split() == ["...", "8", "more", "ranks", "in", "the", "JSON", "form"]
    rows = [line.split() for line in lines[-33:-1]]
    assert [row[0] for row in rows] == [str(rank) for rank in range(32)]
    assert [row[1] for row in rows] == [str(len(times)) for times in run.end[:32]]
    assert rows[7][2:] == ["-", "-", "-", "0"]


def test_the_text_names_the_run_and_ends_with_its_warnings(tmp_path):
    schedule = synthetic.schedule(3, 200, seed=1)
    run = open_run(synthetic.write_run(tmp_path, schedule))
    first, *_, last = staleness_text(run).splitlines()
    assert first == f"staleness of {tmp_path}: 200 gradients on 3 ranks"
    assert last == "note: the run is not complete: it is still running, or it was killed"
    assert staleness_table(run.staleness()) in staleness_text(run)


def test_the_text_says_that_elementwise_reads_make_staleness_inexact(tmp_path):
    config = load_config({"budget": {"gradients": 10}, "exchange": {"consistency": "elementwise"}}).to_toml()
    run = open_run(synthetic.write_run(tmp_path, synthetic.schedule(3, 200, seed=1), config=config))
    assert "exact only to within" in staleness_text(run)
