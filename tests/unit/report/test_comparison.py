"""Runs side by side: the table, the JSON object, the picture, and the command."""

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
from hpc_dasgd.report import comparison, plotting
from tests.unit import synthetic

# Two ranks in turn; in the order of their ends the gradients missed 0, 1, 1 and 2 others.
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
    """Write a run, complete unless `seconds` is None; `sections` are of its settings."""
    summary = None if seconds is None else {"seconds": seconds}
    config = settings(**sections)
    synthetic.write_run(directory, gradients, every, config=config, evaluations=evaluations, summary=summary)
    return open_run(directory)


@pytest.fixture
def pair(tmp_path):
    """A fast run and a slow one, which differ in their exchange, their stragglers and their seed alone."""
    return [
        write_run(tmp_path / "read", straggler={"delay_ms": 3.0}, seed=1),
        write_run(tmp_path / "synchronous", SLOW, 8.0, exchange={"kind": "allreduce"}, seed=2),
    ]


def rows_of(runs, loss=None):
    return comparison.compare(runs, loss).as_dict()["runs"]


def test_numbers_of_two_runs(tmp_path, pair):
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
    found = comparison.compare(pair).as_dict()
    assert found == {"loss": 0.4375, "runs": [shared | fast, shared | slow], "differences": {}}


def test_table_of_two_runs(pair):
    first, empty, *table = comparison.compare(pair).table().splitlines()
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


def test_large_numbers_are_written_out(tmp_path):
    row = comparison.compare([write_run(tmp_path / "long", seconds=123456.7)]).table().splitlines()[3]
    assert row.split()[4:7] == ["4", "123457", "3.24e-05"]


@pytest.mark.parametrize(
    ("loss", "fast", "slow"),
    [(0.5, (1.0, 2), (3.0, 3)), (0.499, (2.0, 3), (5.0, 4)), (3, (0.0, 0), (0.0, 0)), (0.1, (None,) * 2, (None,) * 2)],
)
def test_the_time_to_a_loss_is_that_of_the_first_evaluation_at_most_it(pair, loss, fast, slow):
    rows = rows_of(pair, loss)
    assert [(row["seconds_to_loss"], row["gradients_to_loss"]) for row in rows] == [fast, slow]
    assert f"<= {loss}\n" in comparison.compare(pair, loss).table()


def test_runs_that_were_not_evaluated_have_no_say_in_the_loss(tmp_path, pair):
    unevaluated = write_run(tmp_path / "a", ())
    lost = write_run(tmp_path / "b", [(1.0, 1, np.nan, np.nan)])
    found = comparison.compare([*pair, unevaluated, lost])
    assert found.loss == 0.4375
    for row in found.rows[2:]:
        names = ("loss", "accuracy", "seconds_to_loss", "gradients_to_loss")
        assert [row[name] for name in names] == [None] * 4
    alone = comparison.compare([unevaluated])
    assert alone.loss is None
    assert alone.table().startswith("1 run, not evaluated\n")


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_must_be_finite(pair, loss):
    with pytest.raises(ConfigError, match="`loss` must be finite, got"):
        comparison.compare(pair, loss)


def test_a_run_that_did_not_end_counts_up_to_its_last_gradient(tmp_path, pair):
    killed = write_run(tmp_path / "killed", seconds=None)
    (row,) = rows_of([killed])
    assert (row["status"], row["seconds"], row["gradients_per_s"]) == ("running", 4.0, 1.0)
    last = comparison.compare([pair[0], killed]).table().splitlines()[-1]
    assert last == "warning: killed: the run is not complete: it is going on, or was killed"


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"gradients": NONE}, {"exchange": {"kind": "none"}}],
    ids=["no version vectors", "no gradients", "independent models"],
)
def test_staleness_that_is_not_known_is_a_dash(tmp_path, options):
    found = comparison.compare([write_run(tmp_path / "run", **options)])
    assert (found.rows[0]["S_avg"], found.rows[0]["S_max"]) == (None, None)
    assert found.table().splitlines()[3].split()[-4:] == ["-", "-", "2", "3"]


def test_a_run_without_anything_still_has_a_row(tmp_path):
    (row,) = rows_of([write_run(tmp_path / "run", (), None, NONE)])
    numbers = {"gradients", "seconds", "n_ranks"}
    assert {name for name, value in row.items() if value is None} == set(row) - numbers - {
        "label", "run", "status", "exchange", "warnings",
    }  # fmt: skip
    assert (row["gradients"], row["seconds"]) == (0, 0.0)


def test_a_damaged_log_costs_its_run_alone_the_staleness(tmp_path, pair):
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
def test_exchange_in_words_says_what_the_kind_uses(tmp_path, exchange, words):
    # Settings that this version cannot read: it knows no key `strange`.
    run = write_run(tmp_path / "run")
    lines = "".join(f'{name} = "{value}"\n' for name, value in exchange.items())
    run.attributes["config"] = f"strange = 1\n[optimizer]\nnew = 1\n[exchange]\n{lines}"
    found = comparison.compare([write_run(tmp_path / "other"), run])
    assert found.rows[1]["exchange"] == words
    assert "this version cannot read the settings" in found.rows[1]["warnings"][0]
    assert found.differences == {}


def test_settings_that_are_no_toml_still_have_a_row(tmp_path):
    run = write_run(tmp_path / "run")
    run.attributes["config"] = "never = = toml"
    (row,) = rows_of([run])
    assert (row["exchange"], row["gradients"], row["S_max"]) == (None, 4, 2)


def test_labels_are_as_long_as_needed(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / path) for path in ("a/x/run", "b/x/run", "a/y/run", "a/other")]
    assert [row["label"] for row in rows_of(runs)] == ["a/x/run", "b/x/run", "y/run", "other"]
    assert [row["label"] for row in rows_of(runs[:1])] == ["run"]
    monkeypatch.chdir(tmp_path / "a" / "x" / "run")
    here = [open_run("."), open_run("run.h5")]
    assert [[row["label"] for row in rows_of([run])] for run in here] == [["run"], ["run"]]
    with pytest.raises(ConfigError, match="compared only once"):
        comparison.compare(here)


def test_what_else_differs_is_noted_once_per_key(tmp_path):
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", optimizer={"stepsize": 0.5}, data={"batch_size": 8}),
        write_run(tmp_path / "c", optimizer={"stepsize": 0.5}, objective={"kind": "mlp", "hidden": [4, 4]}),
        write_run(tmp_path / "d", gradients=synthetic.schedule(3, 20)),
    ]
    found = comparison.compare(runs)
    assert found.as_dict()["differences"] == {
        "n_ranks": {"a": 2, "b": 2, "c": 2, "d": 3},
        "data.batch_size": {"a": 32, "b": 8, "c": 32, "d": 32},
        "objective.hidden": {"a": None, "b": None, "c": [4, 4], "d": None},
        "optimizer.stepsize": {"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.1},
    }
    assert [line for line in found.table().splitlines() if line.startswith("note")] == [
        "note: `n_ranks` is 2 in a, b, c; 3 in d",
        "note: `data.batch_size` is 32 in a, c, d; 8 in b",
        "note: `objective.hidden` is not set in a, b, d; [4, 4] in c",
        "note: `optimizer.stepsize` is 0.1 in a, d; 0.5 in b, c",
        "note: so they differ in more than their exchanges",
    ]


def drawn(runs):
    """The three panels, checked for their names, and the texts of the legend."""
    figure = comparison._figure(comparison.compare(runs))
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels] == PANELS
    (legend,) = figure.legends
    return panels, [text.get_text() for text in legend.get_texts()]


def points(line):
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))


def test_picture_shows_each_run_in_one_colour(pair):
    panels, legend = drawn(pair)
    assert legend == ["read: read, complete", "synchronous: allreduce"]
    assert [points(line) for line in panels[0].lines] == [
        [(0.0, 2.0), (1.0, 0.5), (2.0, 0.25), (4.0, 0.375)],
        [(0.0, 2.0), (3.0, 0.5), (5.0, 0.4375)],
    ]
    assert points(panels[1].lines[1]) == [(0, 2.0), (3, 0.5), (4, 0.4375)]
    # Of the gradients missing 0, 1, 1, 2 others, all missed at least 0, three at least 1, one at least 2.
    assert points(panels[2].lines[0]) == [(0, 1.0), (0, 1.0), (1, 0.75), (2, 0.25)]
    colors = [[line.get_color() for line in axes.lines] for axes in panels]
    assert colors == [colors[0]] * 3
    assert len(set(colors[0])) == 2
    assert [axes.get_yscale() for axes in panels] == ["log"] * 3


def test_a_run_keeps_its_colour_where_another_has_nothing_to_show(tmp_path, pair):
    first = write_run(tmp_path / "first", (), every=0)
    lost = write_run(tmp_path / "lost", [(1.0, 1, np.nan, np.nan), (2.0, 2, 0.5, np.nan)])
    panels, legend = drawn([first, *pair, lost])
    assert len(legend) == 4
    for axes in panels:
        expected = [plotting.line_style(i)["color"] for i in (1, 2, 3)]
        assert [line.get_color() for line in axes.lines] == expected
    assert points(panels[0].lines[2]) == [(2.0, 0.5)]


def test_losses_that_are_not_all_positive_are_on_a_linear_axis(tmp_path, pair):
    panels, _ = drawn([*pair, write_run(tmp_path / "negative", [(0.0, 0, -1.0, np.nan)])])
    assert [axes.get_yscale() for axes in panels] == ["linear", "linear", "log"]


def test_styles_of_many_lines_differ():
    assert len({tuple(plotting.line_style(i).items()) for i in range(40)}) == 40
    assert len({plotting.line_style(i)["color"] for i in range(10)}) == 10
    assert len({plotting.line_style(i)["marker"] for i in range(10)}) == 10


@pytest.mark.parametrize("known", [True, False])
def test_the_picture_is_one_with_and_without_something_to_show(tmp_path, known):
    from matplotlib.image import imread

    name = "run$^_$"  # no formula
    run = write_run(tmp_path / name) if known else write_run(tmp_path / name, (), None, NONE)
    path = comparison.write_plot(comparison.compare([run]), tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "compare.png"
    pixels = imread(path)
    assert pixels.shape[1] > 2 * pixels.shape[0] > 1000
    colors = np.unique((pixels[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0).tolist()
    assert [0x3F, 0x90, 0xDA] in colors  # of the run, in the legend at the least
    texts = [[text.get_text() for text in axes.texts] for axes in drawn([run])[0]]
    assert texts == [[]] * 3 if known else [["not known of any run"]] * 3


def program(folder, *arguments):
    command = [sys.executable, "-m", "hpc_dasgd", "compare", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_command_prints_the_table_and_says_where_the_picture_is(tmp_path, pair):
    result = program(tmp_path, "read", "synchronous/run.h5")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{comparison.compare(pair).table()}\nplot: compare/compare.png\n"
    assert (tmp_path / "compare" / "compare.png").stat().st_size > 10_000


def test_command_prints_one_object_and_draws_all_the_same(tmp_path, pair):
    result = program(tmp_path, "read", "synchronous", "--json", "--loss", "0.5", "--output", "there")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["loss"] == 0.5
    assert [(row["label"], row["seconds_to_loss"]) for row in found["runs"]] == [("read", 1.0), ("synchronous", 3.0)]
    assert found["differences"] == {}
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
def test_what_is_wrong_is_said_in_one_line(tmp_path, pair, arguments, message):
    result = program(tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
