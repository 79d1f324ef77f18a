"""Comparison of runs: the table, the JSON object, the plot, and the command."""

import json
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.config.settings import load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.report import comparison, comparison_plot, plotting
from hpc_dasgd.report.comparison_table import comparison_table
from tests.unit import synthetic

# Two ranks; in the order of completion their gradients missed 0, 1, 1 and 2 others.
GRADIENTS = SimpleNamespace(
    n_ranks=2,
    start=[np.array([0.0, 1.0]), np.array([0.0, 2.0])],
    end=[np.array([1.0, 3.0]), np.array([2.0, 4.0])],
    versions=[np.array([[0, 0], [1, 0]], np.uint32), np.array([[0, 0], [0, 1]], np.uint32)],
)
NONE = synthetic.schedule(2, 0)
FAST = [(0.0, 0, 2.0, 0.125), (1.0, 2, 0.5, 0.625), (2.0, 3, 0.25, 0.875), (4.0, 4, 0.375, 0.75)]
SLOW = [(0.0, 0, 2.0, 0.125), (3.0, 3, 0.5, 0.5), (5.0, 4, 0.4375, 0.625)]
PANELS = ["time since the start (s)", "gradients of all ranks", "staleness (gradients missed)"]


def settings(**sections):
    return load_config({"budget": {"gradients": 10}} | sections).to_toml()


def write_run(directory, evaluations=FAST, seconds=2.0, gradients=GRADIENTS, every=1, **sections):
    """Write a run that is complete unless `seconds` is None; `sections` are sections of its settings."""
    summary = None if seconds is None else {"seconds": seconds}
    config = settings(**sections)
    synthetic.write_run(directory, gradients, every, config=config, evaluations=evaluations, summary=summary)
    return open_run(directory)


@pytest.fixture
def pair(tmp_path):
    """A fast and a slow run that differ only in exchange, stragglers and seed."""
    return [
        write_run(tmp_path / "read", straggler={"delay_ms": 3.0}, seed=1),
        write_run(tmp_path / "synchronous", SLOW, 8.0, exchange={"kind": "allreduce"}, seed=2),
    ]


def rows_of(runs, loss=None):
    return comparison.compare(runs, loss).as_dict()["runs"]


def test_the_json_object_of_two_runs(tmp_path, pair):
    shared = {"status": "complete", "n_ranks": 2, "gradients": 4, "S_avg": 1.0, "S_max": 2, "warnings": []}
    fast = {
        "label": "read", "run": str(tmp_path / "read"), "exchange": "read, complete",
        "seconds": 2.0, "gradients_per_s": 2.0, "loss": 0.375, "accuracy": 0.75,
        "seconds_to_loss": 2.0, "gradients_to_loss": 3,
    }  # fmt: skip
    slow = {
        "label": "synchronous", "run": str(tmp_path / "synchronous"), "exchange": "allreduce",
        "seconds": 8.0, "gradients_per_s": 0.5, "loss": 0.4375, "accuracy": 0.625,
        "seconds_to_loss": 5.0, "gradients_to_loss": 4,
    }  # fmt: skip
    compared = comparison.compare(pair).as_dict()
    assert compared == {"loss": 0.4375, "runs": [shared | fast, shared | slow], "differences": {}}


def test_the_table_of_two_runs(pair):
    first, empty, *table = comparison_table(comparison.compare(pair)).splitlines()
    assert first == "2 runs; to loss: until the evaluation loss was first <= 0.4375"
    assert empty == ""
    assert [line.split("  ") for line in table] == [line.split("  ") for line in (
        "run          exchange        ranks  gradients  seconds  gradients/s    loss  accuracy  S_avg  S_max"
        "  s to loss  gradients to loss",
        "read         read, complete      2          4        2            2   0.375      0.75      1      2"
        "          2                  3",
        "synchronous  allreduce           2          4        8          0.5  0.4375     0.625      1      2"
        "          5                  4",
    )]  # fmt: skip


def test_large_numbers_have_no_exponent(tmp_path):
    row = comparison_table(comparison.compare([write_run(tmp_path / "long", seconds=123456.7)])).splitlines()[3]
    assert row.split()[4:7] == ["4", "123457", "3.24e-05"]


@pytest.mark.parametrize(
    ("loss", "fast", "slow"),
    [(0.5, (1.0, 2), (3.0, 3)), (0.499, (2.0, 3), (5.0, 4)), (3, (0.0, 0), (0.0, 0)), (0.1, (None,) * 2, (None,) * 2)],
)
def test_the_time_to_a_loss_is_that_of_the_first_evaluation_that_reached_it(pair, loss, fast, slow):
    rows = rows_of(pair, loss)
    assert [(row["seconds_to_loss"], row["gradients_to_loss"]) for row in rows] == [fast, slow]
    assert f"<= {loss}\n" in comparison_table(comparison.compare(pair, loss))


def test_runs_without_evaluations_do_not_affect_the_default_loss(tmp_path, pair):
    unevaluated = write_run(tmp_path / "a", ())
    lost = write_run(tmp_path / "b", [(1.0, 1, np.nan, np.nan)])
    compared = comparison.compare([*pair, unevaluated, lost])
    assert compared.loss == 0.4375
    for row in compared.rows[2:]:
        names = ("loss", "accuracy", "seconds_to_loss", "gradients_to_loss")
        assert [row[name] for name in names] == [None] * 4
    alone = comparison.compare([unevaluated])
    assert alone.loss is None
    assert comparison_table(alone).startswith("1 run, not evaluated\n")


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_must_be_finite(pair, loss):
    with pytest.raises(ConfigError, match="`loss` must be finite, got"):
        comparison.compare(pair, loss)


def test_the_duration_of_a_killed_run_ends_at_its_last_gradient(tmp_path, pair):
    killed = write_run(tmp_path / "killed", seconds=None)
    (row,) = rows_of([killed])
    assert (row["status"], row["seconds"], row["gradients_per_s"]) == ("running", 4.0, 1.0)
    last = comparison_table(comparison.compare([pair[0], killed])).splitlines()[-1]
    assert last == "warning: killed: the run is not complete: it is still running, or it was killed"


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"gradients": NONE}, {"exchange": {"kind": "none"}}],
    ids=["no version vectors", "no gradients", "independent models"],
)
def test_unknown_staleness_is_a_dash(tmp_path, options):
    compared = comparison.compare([write_run(tmp_path / "run", **options)])
    assert (compared.rows[0]["S_avg"], compared.rows[0]["S_max"]) == (None, None)
    assert comparison_table(compared).splitlines()[3].split()[-4:] == ["-", "-", "2", "3"]


def test_a_run_without_gradients_and_evaluations_has_a_row(tmp_path):
    (row,) = rows_of([write_run(tmp_path / "run", (), None, NONE)])
    numbers = {"gradients", "seconds", "n_ranks"}
    assert {name for name, value in row.items() if value is None} == set(row) - numbers - {
        "label", "run", "status", "exchange", "warnings",
    }  # fmt: skip
    assert (row["gradients"], row["seconds"]) == (0, 0.0)


def test_a_damaged_log_affects_only_the_staleness_of_its_own_run(tmp_path, pair):
    with h5py.File(pair[1].directory / "rank_00000.h5", "r+") as file:
        file["gradient/versions"][:, 0] += 1
    good, bad = rows_of([pair[0], open_run(pair[1].directory)])
    assert (good["S_max"], bad["S_max"]) == (2, None)
    assert "is damaged" in bad["warnings"][0]


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        ({"kind": "read", "topology": "tree", "consistency": "snapshot"}, "read, tree"),
        ({"kind": "read", "topology": "complete", "consistency": "elementwise"}, "read, complete, elementwise"),
        ({"kind": "gossip", "mixing": "pairwise", "topology": "ring"}, "gossip, pairwise, ring"),
        ({"kind": "gossip", "topology": "ring", "consistency": "elementwise"}, "gossip, ring"),
        ({"kind": "server", "topology": "complete"}, "server"),
        ({"kind": "allreduce", "topology": "complete", "mixing": "pairwise"}, "allreduce"),
        ({}, None),
    ],
)
def test_the_exchange_is_described_by_the_settings_that_its_kind_uses(tmp_path, exchange, words):
    # Settings that this version cannot read: it knows no key `strange`.
    run = write_run(tmp_path / "run")
    lines = "".join(f'{name} = "{value}"\n' for name, value in exchange.items())
    run.attributes["config"] = f"strange = 1\n[optimizer]\nnew = 1\n[exchange]\n{lines}"
    compared = comparison.compare([write_run(tmp_path / "other"), run])
    assert compared.rows[1]["exchange"] == words
    assert "this version cannot read the settings" in compared.rows[1]["warnings"][0]
    assert compared.differences == {}


def test_a_run_with_settings_that_are_not_toml_has_a_row(tmp_path):
    run = write_run(tmp_path / "run")
    run.attributes["config"] = "never = = toml"
    (row,) = rows_of([run])
    assert (row["exchange"], row["gradients"], row["S_max"]) == (None, 4, 2)


def test_labels_are_the_shortest_unique_ends_of_paths(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / path) for path in ("a/x/run", "b/x/run", "a/y/run", "a/other")]
    assert [row["label"] for row in rows_of(runs)] == ["a/x/run", "b/x/run", "y/run", "other"]
    assert [row["label"] for row in rows_of(runs[:1])] == ["run"]
    monkeypatch.chdir(tmp_path / "a" / "x" / "run")
    here = [open_run("."), open_run("run.h5")]
    assert [[row["label"] for row in rows_of([run])] for run in here] == [["run"], ["run"]]
    with pytest.raises(ConfigError, match="compared only once"):
        comparison.compare(here)


def test_each_setting_that_differs_has_one_note(tmp_path):
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", optimizer={"stepsize": 0.5}, data={"batch_size": 8}),
        write_run(tmp_path / "c", optimizer={"stepsize": 0.5}, objective={"kind": "mlp", "hidden": [4, 4]}),
        write_run(tmp_path / "d", gradients=synthetic.schedule(3, 20)),
    ]
    compared = comparison.compare(runs)
    assert compared.as_dict()["differences"] == {
        "n_ranks": {"a": 2, "b": 2, "c": 2, "d": 3},
        "data.batch_size": {"a": 32, "b": 8, "c": 32, "d": 32},
        "objective.hidden": {"a": None, "b": None, "c": [4, 4], "d": None},
        "optimizer.stepsize": {"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.1},
    }
    assert [line for line in comparison_table(compared).splitlines() if line.startswith("note")] == [
        "note: `n_ranks` is 2 in a, b, c; 3 in d",
        "note: `data.batch_size` is 32 in a, c, d; 8 in b",
        "note: `objective.hidden` is not set in a, b, d; [4, 4] in c",
        "note: `optimizer.stepsize` is 0.1 in a, d; 0.5 in b, c",
        "note: the runs differ in more than their exchanges",
    ]


def panels_and_legend(runs):
    """Return the axes of the three panels, and the texts of the legend."""
    figure = comparison_plot.comparison_figure(comparison.compare(runs))
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels] == PANELS
    (legend,) = figure.legends
    return panels, [text.get_text() for text in legend.get_texts()]


def points(line):
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))


def test_the_plot_shows_each_run_in_one_colour(pair):
    panels, legend = panels_and_legend(pair)
    assert legend == ["read: read, complete", "synchronous: allreduce"]
    assert [points(line) for line in panels[0].lines] == [
        [(0.0, 2.0), (1.0, 0.5), (2.0, 0.25), (4.0, 0.375)],
        [(0.0, 2.0), (3.0, 0.5), (5.0, 0.4375)],
    ]
    assert points(panels[1].lines[1]) == [(0, 2.0), (3, 0.5), (4, 0.4375)]
    # The gradients missed 0, 1, 1, 2 others: all at least 0, three at least 1, one at least 2.
    assert points(panels[2].lines[0]) == [(0, 1.0), (0, 1.0), (1, 0.75), (2, 0.25)]
    colors = [[line.get_color() for line in axes.lines] for axes in panels]
    assert colors == [colors[0]] * 3
    assert len(set(colors[0])) == 2
    assert [axes.get_yscale() for axes in panels] == ["log"] * 3


def test_a_run_keeps_its_colour_if_another_has_no_data(tmp_path, pair):
    first = write_run(tmp_path / "first", (), every=0)
    lost = write_run(tmp_path / "lost", [(1.0, 1, np.nan, np.nan), (2.0, 2, 0.5, np.nan)])
    panels, legend = panels_and_legend([first, *pair, lost])
    assert len(legend) == 4
    for axes in panels:
        expected = [plotting.line_style(i)["color"] for i in (1, 2, 3)]
        assert [line.get_color() for line in axes.lines] == expected
    assert points(panels[0].lines[2]) == [(2.0, 0.5)]


def test_losses_that_are_not_all_positive_have_a_linear_axis(tmp_path, pair):
    panels, _ = panels_and_legend([*pair, write_run(tmp_path / "negative", [(0.0, 0, -1.0, np.nan)])])
    assert [axes.get_yscale() for axes in panels] == ["linear", "linear", "log"]


def test_styles_of_many_lines_differ():
    assert len({tuple(plotting.line_style(i).items()) for i in range(40)}) == 40
    assert len({plotting.line_style(i)["color"] for i in range(10)}) == 10
    assert len({plotting.line_style(i)["marker"] for i in range(10)}) == 10


@pytest.mark.parametrize("known", [True, False])
def test_the_plot_is_an_image_with_and_without_data(tmp_path, known):
    from matplotlib.image import imread

    name = "run$^_$"  # not a formula of Matplotlib
    run = write_run(tmp_path / name) if known else write_run(tmp_path / name, (), None, NONE)
    path = comparison_plot.write_plot(comparison.compare([run]), tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "compare.png"
    pixels = imread(path)
    assert pixels.shape[1] > 2 * pixels.shape[0] > 1000
    colors = np.unique((pixels[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0).tolist()
    assert [0x3F, 0x90, 0xDA] in colors  # the colour of the run, at least in the legend
    texts = [[text.get_text() for text in axes.texts] for axes in panels_and_legend([run])[0]]
    assert texts == [[]] * 3 if known else [["no data"]] * 3


def program(folder, *arguments):
    command = [sys.executable, "-m", "hpc_dasgd", "compare", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_command_prints_the_table_and_the_path_of_the_plot(tmp_path, pair):
    result = program(tmp_path, "read", "synchronous/run.h5")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{comparison_table(comparison.compare(pair))}\nplot: compare/compare.png\n"
    assert (tmp_path / "compare" / "compare.png").stat().st_size > 10_000


def test_the_command_prints_one_json_object_and_writes_the_plot(tmp_path, pair):
    result = program(tmp_path, "read", "synchronous", "--json", "--loss", "0.5", "--output", "there")
    assert (result.returncode, result.stderr) == (0, "")
    compared = json.loads(result.stdout)
    assert compared["loss"] == 0.5
    assert [(row["label"], row["seconds_to_loss"]) for row in compared["runs"]] == [("read", 1.0), ("synchronous", 3.0)]
    assert compared["differences"] == {}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["compare.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN"),
        (["read", "nowhere"], "nowhere must be a run directory"),
        (["read", "./read/"], "compared only once, got read 2 times"),
        (["read", "--output", "read/run.h5/plots"], "cannot write plots to read/run.h5/plots: Not a directory"),
        (["read", "--loss", "nan"], "`loss` must be finite, got nan"),
        (["read", "--loss", "low"], "low"),
    ],
)
def test_errors_are_printed_in_one_line(tmp_path, pair, arguments, message):
    result = program(tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
