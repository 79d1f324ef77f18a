"""Data of plots, read back from the axes."""

import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.report import pictures, plotting, timeline
from tests.unit import synthetic


@pytest.fixture
def run(tmp_path):
    evaluations = [(1.0, 10, 0.75, 0.5), (2.0, 20, 0.25, 0.875), (3.0, 30, 0.5, 0.625)]
    schedule = synthetic.schedule(3, 300, seed=2)
    return open_run(
        synthetic.write_run(tmp_path / "run", schedule, loss=lambda _, k: 2 / (k + 1), evaluations=evaluations)
    )


def axes_of(draw, run):
    figure = plotting.blank_figure(6, 4)
    draw(run, figure)
    return figure.axes


def test_a_positive_loss_has_a_logarithmic_axis(run):
    loss, accuracy = sorted(
        axes_of(pictures.loss_over_gradients, run), key=lambda axes: axes.get_ylabel(), reverse=True
    )
    assert loss.get_yscale() == "log"
    assert [line.get_label() for line in loss.lines][-1] == "evaluation set"
    assert loss.lines[-1].get_xdata().tolist() == [10, 20, 30]
    assert accuracy.lines[0].get_ydata().tolist() == [0.5, 0.875, 0.625]
    run.gradients["loss"] -= 1
    assert axes_of(pictures.loss_over_gradients, run)[0].get_yscale() == "linear"


def test_without_accuracy_only_the_loss_is_drawn(run):
    run.evaluation["accuracy"] = np.nan
    assert [axes.get_ylabel() for axes in axes_of(pictures.loss_over_seconds, run)] == ["loss"]


def test_block_means_equal_means_of_slices():
    values = np.random.default_rng(0).random(1000)
    assert pictures._block_means(values, 1000).tolist() == values.tolist()
    np.testing.assert_allclose(pictures._block_means(values, 10), values.reshape(10, 100).mean(axis=1))
    uneven = pictures._block_means(values[:7], 3)
    np.testing.assert_allclose(uneven, [values[:2].mean(), values[2:4].mean(), values[4:7].mean()])


def test_staleness_over_time_shows_the_largest(run):
    axes = axes_of(pictures.staleness_over_time, run)[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert lines["largest"].max() == run.staleness().as_dict()["S_max"]
    assert set(lines) == {"median", "largest", *(f"mean of rank {rank}" for rank in range(3))}


def test_missed_gradients_are_shown_by_rank_and_source(run):
    shown = axes_of(pictures.missed_by_pair, run)[0].images[0].get_array()
    expected = run.staleness().missed.per_pair / run.counts[:, np.newaxis]
    assert np.ma.getmaskarray(shown).tolist() == np.eye(3, dtype=bool).tolist()
    np.testing.assert_allclose(shown.filled(0), expected)


def test_the_timeline_has_one_bar_per_gradient_in_its_range(run):
    axes = axes_of(timeline.gradients_in_the_middle, run)[0]
    begin, end = timeline._middle(run)
    assert axes.get_xlim() == pytest.approx((0, end - begin))
    shown = (run.gradients["t_end_s"] > begin) & (run.gradients["t_start_s"] < end)
    assert shown.sum() > 10
    assert [len(bars.get_paths()) for bars in axes.collections] == np.bincount(run.gradients["rank"][shown]).tolist()
    positions, staleness = run.staleness_by_row()
    colours = np.concatenate([bars.get_array() for bars in axes.collections])
    assert colours.tolist() == staleness[shown[positions]].tolist()


def test_busy_seconds_are_split_at_the_edges_of_bins():
    gradients = np.zeros(2, [("t_start_s", "f8"), ("t_end_s", "f8")])
    gradients["t_start_s"], gradients["t_end_s"] = [1, 4], [3, 5]
    busy = timeline._busy_seconds(gradients, np.array([0.0, 2.0, 3.5, 4.5, 10.0]))
    np.testing.assert_allclose(busy, [1, 1, 0.5, 0.5])
    assert timeline._busy_seconds(gradients[:0], np.arange(3.0)).tolist() == [0, 0]


def test_the_rates_of_activity_add_up_to_all_gradients(run):
    rate, _ = (axes.images[0] for axes in axes_of(timeline.activity, run) if axes.images)
    first, last, *_ = rate.get_extent()
    values = rate.get_array()
    np.testing.assert_allclose(values.sum(axis=1) * (last - first) / values.shape[1], run.counts)


def test_replica_lag_is_masked_after_the_last_gradient_of_a_rank(tmp_path):
    schedule = synthetic.schedule(2, 200, seed=1)
    schedule.start[0], schedule.end[0], schedule.versions[0] = (
        x[:20] for x in (schedule.start[0], schedule.end[0], schedule.versions[0])
    )
    schedule.versions[1] = np.minimum(schedule.versions[1], [20, 999]).astype(np.uint32)
    run = open_run(synthetic.write_run(tmp_path / "run", schedule))
    values = axes_of(timeline.replica_lag, run)[0].images[0].get_array()
    known = ~np.ma.getmaskarray(values)
    assert known[1].all()
    assert known[0].sum() == pytest.approx(values.shape[1] * schedule.end[0][-1] / schedule.end[1][-1], abs=2)
    # Rank 1 lacks at most the gradients of rank 0; its own updates are always in its replica.
    assert 0 <= values[1].min() <= values[1].max() <= 20


def test_ranks_with_gradients_are_sampled_evenly():
    counts = np.array([0, 3, 0, 1, 2])
    assert plotting.sample_ranks(counts, 16).tolist() == [1, 3, 4]
    assert plotting.sample_ranks(np.ones(101), 3).tolist() == [0, 50, 100]
