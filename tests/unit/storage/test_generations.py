"""Resumed runs: read like runs without interruption, and joined in one file."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.layout import generation_directory, rank_file
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run, read_running_statistics, stop_run
from tests.unit import synthetic

RANKS = {"same": (3, 3, 3), "fewer": (4, 2, 1), "more": (1, 2, 4), "fewer and more": (3, 1, 2)}


def schedules(n_ranks, n_steps=60):
    return [synthetic.schedule(n, n_steps, seed=seed) for seed, n in enumerate(n_ranks)]


def cut(runs):
    """Return how many gradients of each rank count: two thirds in each generation except the last."""
    return [[2 * len(end) // 3 for end in run.end] for run in runs[:-1]]


def assert_reads_as(run, expected, every=1):
    counts = [len(end) for end in expected.end]
    assert run.n_ranks == expected.n_ranks and run.counts.tolist() == counts
    gradients = run.gradients
    np.testing.assert_array_equal(gradients["rank"], np.repeat(range(expected.n_ranks), counts))
    np.testing.assert_array_equal(gradients["version"], np.concatenate([np.arange(n) for n in counts]))
    np.testing.assert_array_equal(gradients["t_start_s"], np.concatenate(expected.start))
    np.testing.assert_array_equal(gradients["t_end_s"], np.concatenate(expected.end))
    np.testing.assert_array_equal(gradients["loss"], gradients["rank"] + gradients["version"] / 1000)
    for logged, vectors in zip(run.versions, expected.versions, strict=True):
        np.testing.assert_array_equal(logged, vectors[::every])
    for rows, vectors in zip(run._rows_on_demand(), expected.versions, strict=True):
        assert rows.shape == vectors[::every].shape
        for k in range(rows.shape[0]):
            np.testing.assert_array_equal(rows[k], vectors[k * every])
        np.testing.assert_array_equal(rows[3:7], vectors[::every][3:7])
    assert run.staleness().as_dict() == synthetic.measured(expected, every).as_dict()


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("lost_work", [False, True])
@pytest.mark.parametrize("n_ranks", RANKS.values(), ids=RANKS)
def test_resumed_run_is_read_like_a_run_without_interruption(tmp_path, n_ranks, lost_work, every):
    runs = schedules(n_ranks)
    expected = synthetic.write_generations(tmp_path, runs, cut(runs) if lost_work else None, every)
    run = open_run(tmp_path)
    assert_reads_as(run, expected, every)
    assert not any("missing" in warning for warning in run.warnings)
    assert run.evaluation["t_s"].tolist() == expected.begun_s
    assert run.evaluation["gradients"].tolist() == [before.sum() for before in expected.before]
    for number, generation in enumerate(run.generations):
        assert (generation.number, generation.n_ranks) == (number, n_ranks[number])
        assert generation.versions_before.tolist() == expected.before[number].tolist()
        assert (generation.begun_s, generation.status) == (expected.begun_s[number], "running")
        assert generation.directory == generation_directory(tmp_path, number)


@pytest.mark.parametrize("seed", range(8))
def test_staleness_does_not_depend_on_the_division_into_generations(tmp_path, seed):
    """Without lost work, the same rows are in one generation and in several."""
    rng = np.random.default_rng(seed)
    runs = schedules(rng.integers(1, 5, rng.integers(2, 5)), int(rng.integers(1, 80)))
    every = int(rng.choice([1, 2, 5]))
    expected = synthetic.write_generations(tmp_path / "cut", runs, every=every)
    synthetic.write_run(tmp_path / "whole", expected, every)
    found = [open_run(tmp_path / name).staleness().as_dict() for name in ("cut", "whole")]
    for one in found:
        del one["between_models"]  # in one generation all ranks are there all the time
    assert found[0] == found[1]


@pytest.mark.parametrize("path", ["", "run.h5", "generation_00001", "generation_00001/run.h5"])
def test_every_path_into_a_run_opens_the_whole_run(tmp_path, monkeypatch, path):
    expected = synthetic.write_generations(tmp_path / "run", schedules((2, 2)))
    assert_reads_as(open_run(tmp_path / "run" / path), expected)
    monkeypatch.chdir(tmp_path / "run" / "generation_00001")
    assert_reads_as(open_run("."), expected)


def test_generation_without_a_child_does_not_count(tmp_path):
    runs = schedules((2, 3, 2))
    expected = synthetic.resumed([runs[0], runs[2]])
    begun_s = expected.begun_s[1]
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    synthetic.write_generation(tmp_path, 1, runs[1], [1, 1, 0], begun_s)
    synthetic.write_generation(tmp_path, 2, runs[2], expected.before[1], begun_s, parent=0)
    run = open_run(tmp_path)
    assert_reads_as(run, expected)
    assert [generation.number for generation in run.generations] == [0, 2]


def test_generation_without_a_complete_run_file_is_ignored(tmp_path):
    expected = synthetic.write_generations(tmp_path, schedules((2, 2)))
    generation_directory(tmp_path, 2).mkdir()
    assert_reads_as(open_run(tmp_path), expected)
    (generation_directory(tmp_path, 2) / "run.h5").touch()
    assert_reads_as(open_run(tmp_path), expected)


def test_attributes_by_rank_have_an_entry_for_every_stream(tmp_path):
    runs = schedules((3, 1))
    expected = synthetic.resumed(runs)
    for number, hosts in enumerate((["a", "b", "c"], ["x"])):
        own = {"hosts": hosts, "started": f"day {number}", "command": f"command {number}", "numpy_version": f"{number}"}
        before, begun_s = expected.before[number], expected.begun_s[number]
        synthetic.write_generation(tmp_path, number, runs[number], before, begun_s, attributes=own)
    run = open_run(tmp_path)
    assert run.attributes["hosts"] == ["x", "b", "c"]
    assert [run.attributes[name] for name in ("started", "command", "numpy_version")] == ["day 0", "command 0", "1"]
    assert [generation.started for generation in run.generations] == ["day 0", "day 1"]
    assert "cores" not in run.attributes


def test_clock_drift_is_corrected_in_each_generation(tmp_path):
    runs = schedules((2, 2))
    expected = synthetic.resumed(runs)
    begun_s = expected.begun_s[1]
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    stop_run(tmp_path, {"clock_drift_s": [0.0, 0.01 * begun_s], "seconds": begun_s})
    synthetic.write_generation(tmp_path, 1, runs[1], expected.before[1], begun_s)
    complete_run(tmp_path, final=synthetic.X0, attributes={"clock_drift_s": [0.0, -2.0], "seconds": begun_s + 100.0})
    run = open_run(tmp_path)
    ends, n_first = run.gradients["t_end_s"][run.rows(1)], len(runs[0].end[1])
    np.testing.assert_allclose(ends[:n_first], 1.01 * runs[0].end[1], rtol=1e-14)
    np.testing.assert_allclose(ends[n_first:], begun_s + 0.98 * runs[1].end[1], rtol=1e-14)
    np.testing.assert_array_equal(run.gradients["t_end_s"][run.rows(0)], expected.end[0])


def test_stopped_run_has_a_warning_that_names_resume(tmp_path):
    runs = schedules((2, 2))
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    stop_run(tmp_path, {"seconds": 12.5})
    run = open_run(tmp_path)
    assert (run.status, run.seconds, run.final) == ("stopped", 12.5, None)
    assert run.warnings == ["stopped by a signal; continue with --resume"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [rank_file(0), rank_file(1), "run.h5"]


# Logs in several segments, and with lost rows.


def write_segments(directory, run, *segments, every=1, before=None):
    """Replace the log of rank 0 by segments with the given rows; a segment may overlap the next."""
    before = np.zeros(run.n_ranks, int) if before is None else before
    for number, rows in enumerate(segments):
        path = directory / rank_file(0, number)
        path.unlink(missing_ok=True)
        (directory / "aside").mkdir()
        first = before + np.eye(run.n_ranks, dtype=int)[0] * rows[0]
        with RankLog(directory / "aside", LogSettings(0, run.n_ranks, every), versions_before=first) as log:
            for k in rows:
                times, vector = (run.start[0][k], run.end[0][k]), run.versions[0][k].astype(int) - first + before
                log.append(*times, (before[0] + k) / 1000, 1.0, k - rows[0], vector)
        (directory / "aside" / rank_file(0)).rename(path)
        (directory / "aside").rmdir()


@pytest.mark.parametrize("every", [1, 4, 7])
def test_segments_of_a_log_are_joined(tmp_path, every):
    run = synthetic.schedule(2, 100, seed=3)
    synthetic.write_run(tmp_path, run, every)
    write_segments(tmp_path, run, range(0, 20), range(13, 30), range(30, len(run.end[0])), every=every)
    assert_reads_as(open_run(tmp_path), run, every)
    complete_run(tmp_path, final=synthetic.X0, attributes={})
    assert_joined(tmp_path, run, every)


def test_lost_rows_are_counted_and_warned_of(tmp_path):
    runs = schedules((2, 2))
    expected = synthetic.write_generations(tmp_path, runs)
    n_first = len(runs[0].end[0])
    write_segments(tmp_path, runs[0], range(0, 5), range(9, n_first - 3))
    run = open_run(tmp_path)
    assert run.counts.tolist() == [len(end) for end in expected.end]
    assert run.missing_counts.tolist() == [7, 0]
    assert "7 gradients of rank 0 are missing from its log" in run.warnings
    for ask in (run.staleness, run.version_rows, lambda: run.versions):
        with pytest.raises(ConfigError, match="lacks 7 gradients of rank 0"):
            ask()
    gradients = run.gradients[run.rows(0)]
    assert gradients["version"].tolist() == list(range(len(expected.end[0])))
    lost = np.array([5, 6, 7, 8, n_first - 3, n_first - 2, n_first - 1])
    assert np.flatnonzero(np.isnan(gradients["loss"])).tolist() == lost.tolist()
    assert (gradients["t_end_s"][5:9] == expected.end[0][4]).all()
    assert (np.diff(gradients["t_end_s"]) >= 0).all()
    complete_run(tmp_path, final=synthetic.X0, attributes={})
    with h5py.File(tmp_path / "run.h5") as file:
        found = file["gradient/version"][: len(expected.end[0]) - 7]
        assert found.tolist() == np.delete(np.arange(len(expected.end[0])), lost).tolist()


def test_run_opens_if_the_log_of_a_rank_is_missing(tmp_path):
    runs = schedules((2, 2))
    expected = synthetic.write_generations(tmp_path, runs)
    (tmp_path / rank_file(1)).unlink()
    run = open_run(tmp_path)
    assert run.counts.tolist() == [len(end) for end in expected.end]
    assert run.missing_counts.tolist() == [0, len(runs[0].end[1])]
    assert run.gradients["t_end_s"][run.rows(1)][0] == 0


def test_incomplete_rows_do_not_count(tmp_path):
    run = synthetic.schedule(2, 100, seed=3)
    synthetic.write_run(tmp_path, run)
    with h5py.File(tmp_path / rank_file(0), "r+") as file:
        file["whole/gradient"][()] = 12
    opened = open_run(tmp_path)
    assert opened.counts.tolist() == [12, len(run.end[1])]
    assert any("rank_00000.h5 is cut to 12 gradients" in warning for warning in opened.warnings)


# Virtual data sets over all generations.


def assert_joined(directory, expected, every=1, numbers=None):
    with h5py.File(directory / "run.h5") as file:
        gradient, counts = file["gradient"], [len(end) for end in expected.end]
        wanted = {
            "rank": np.repeat(range(expected.n_ranks), counts),
            "version": np.concatenate([np.arange(n) for n in counts]),
            "t_start_s": np.concatenate(expected.start),
            "t_end_s": np.concatenate(expected.end),
            "versions": np.concatenate([vectors[::every] for vectors in expected.versions]),
            "source_rank": np.arange(expected.n_ranks),
        }
        for name, values in wanted.items():
            np.testing.assert_array_equal(gradient[name], values, err_msg=name)
        np.testing.assert_array_equal(gradient["loss"], wanted["rank"] + wanted["version"] / 1000)
        rows = gradient["versions_row"][:] if every > 1 else np.arange(sum(counts))
        np.testing.assert_array_equal(rows, np.flatnonzero(wanted["version"] % every == 0))
        if numbers is not None:
            np.testing.assert_array_equal(gradient["generation"], np.concatenate(numbers))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("n_ranks", RANKS.values(), ids=RANKS)
def test_completed_run_joins_the_logs_of_its_generations(tmp_path, n_ranks, every):
    runs = schedules(n_ranks)
    kept = cut(runs)
    expected = synthetic.write_generations(tmp_path / "here", runs, kept, every)
    complete_run(tmp_path / "here", final=synthetic.X0 + 7, attributes={"seconds": 99.0, "clock_drift_s": [0.0]})
    shutil.move(tmp_path / "here", tmp_path / "there")
    run = open_run(tmp_path / "there")
    assert (run.status, run.seconds, run.final.tolist()) == ("complete", 99.0, (synthetic.X0 + 7).tolist())
    assert_reads_as(run, expected, every)
    assert [generation.status for generation in run.generations] == ["running", "running", "complete"]
    by_stream = [[] for _ in range(expected.n_ranks)]
    for number, counts in enumerate([*kept, [len(end) for end in runs[-1].end]]):
        for rank, n in enumerate(counts):
            by_stream[rank] += [number] * n
    with h5py.File(tmp_path / "there" / "run.h5") as file:
        assert file["gradient/generation"][:].tolist() == [number for numbers in by_stream for number in numbers]
        np.testing.assert_array_equal(file["gradient/t_end_s"], np.concatenate(expected.end))
        # Vectors are joined as they were logged, lost work included.
        limited = np.concatenate([vectors[::every] for vectors in expected.versions])
        logged = file["gradient/versions"][:]
    assert logged.shape == limited.shape and (logged >= limited).all()
    with h5py.File(tmp_path / "there" / "generation_00002" / "run.h5") as file:
        assert (file.attrs["status"], file.attrs["seconds"]) == ("complete", 99.0)
        assert set(file) == {"x0", "parameter"}


def test_other_tools_read_the_joined_logs(tmp_path):
    runs = schedules((2, 3))
    expected = synthetic.write_generations(tmp_path, runs)
    complete_run(tmp_path, final=synthetic.X0, attributes={})
    numbers = [[0] * len(runs[0].end[0]), [1] * len(runs[1].end[0])]
    numbers += [[0] * len(runs[0].end[1]), [1] * len(runs[1].end[1]), [1] * len(runs[1].end[2])]
    assert_joined(tmp_path, expected, 1, numbers)
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(tmp_path / "run.h5", group="gradient", engine="h5netcdf", phony_dims=None) as opened:
        assert opened["loss"].dims == ("version",)
        np.testing.assert_array_equal(opened["t_end_s"], np.concatenate(expected.end))
        np.testing.assert_array_equal(opened["versions"], np.concatenate(expected.versions))
    if shutil.which("h5dump"):
        n = sum(map(len, expected.end))
        command = ["h5dump", "-d", "/gradient/generation", "-s", f"{n - 2}", "-c", "2", str(tmp_path / "run.h5")]
        assert f"({n - 2}): 1, 1" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_logs_of_a_killed_generation_are_joined(writer):
    run = synthetic.schedule(1, 50)
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml="", attributes={"n_ranks": 1}, x0=synthetic.X0)
    log.rename(writer.path)
    writer.append_1000(1000)
    writer.kill()
    synthetic.write_generation(writer.directory, 1, run, [900], 0.9)
    complete_run(writer.directory, final=synthetic.X0, attributes={})
    with h5py.File(writer.directory / "run.h5") as file:
        assert file["gradient/version"][:].tolist() == list(range(950))
        assert file["gradient/t_end_s"][:900].tolist() == [(k + 0.5) / 1000 for k in range(900)]
        assert file["evaluation/t_s"][:].tolist() == [0, 0.9]
    assert open_run(writer.directory).counts.tolist() == [950]


def test_complete_run_can_be_resumed_and_completed_again(tmp_path):
    runs = schedules((2, 2, 1))
    expected = synthetic.resumed(runs)
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    for number in (1, 2):
        statistics = {"mean": np.full((2, 3), number, "f4"), "variance": np.ones(2)}
        attributes = {"seconds": 10.0 * number}
        complete_run(tmp_path, final=synthetic.X0 + number, attributes=attributes, running_statistics=statistics)
        kept = open_run(tmp_path).running_statistics
        assert {name: values.tolist() for name, values in kept.items()} == {
            "mean": [[number] * 3] * 2,
            "variance": [1, 1],
        }
        synthetic.write_generation(tmp_path, number, runs[number], expected.before[number], expected.begun_s[number])
        assert open_run(tmp_path).final is None and open_run(tmp_path).running_statistics == {}
        assert open_run(tmp_path).status == "running"
    complete_run(tmp_path, final=synthetic.X0 + 3, attributes={"seconds": 30.0})
    assert_joined(tmp_path, expected)
    run = open_run(tmp_path)
    assert (run.seconds, run.final.tolist()) == (30.0, (synthetic.X0 + 3).tolist())
    assert run.running_statistics == {}
    assert [generation.status for generation in run.generations] == ["complete"] * 3


def test_running_statistics_are_read_from_the_newest_generation_that_has_some(tmp_path):
    def statistics(number):
        return {"mean": np.full((2, 3), float(number)), "variance": np.ones(2)}

    runs = schedules((2, 2, 2, 1))
    expected = synthetic.resumed(runs)
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    assert read_running_statistics(tmp_path) == {}
    stop_run(tmp_path, {}, statistics(0))
    for number in (1, 2, 3):
        synthetic.write_generation(tmp_path, number, runs[number], expected.before[number], expected.begun_s[number])
        assert (read_running_statistics(tmp_path)["mean"] == number - 1).all()  # also where this one is killed now
        if number == 2:
            complete_run(tmp_path, final=synthetic.X0, attributes={}, running_statistics=statistics(number))
            assert (open_run(tmp_path).running_statistics["mean"] == number).all()
        else:
            stop_run(tmp_path, {}, statistics(number))
    assert read_running_statistics(tmp_path)["mean"].shape == (2, 3)
    assert open_run(tmp_path).running_statistics == {}


def test_directory_that_holds_a_generation_is_refused(tmp_path):
    synthetic.write_generations(tmp_path, schedules((1, 1)))
    with pytest.raises(ConfigError, match="must be a directory that holds no run yet"):
        create_run(generation_directory(tmp_path, 1), config_toml="", attributes={}, x0=synthetic.X0)


def test_stopping_or_completing_a_directory_without_a_run_is_refused(tmp_path):
    for call in (lambda: stop_run(tmp_path, {}), lambda: complete_run(tmp_path, final=synthetic.X0, attributes={})):
        with pytest.raises(ConfigError, match="must be a run directory"):
            call()


def test_parent_that_is_not_an_earlier_generation_is_refused(tmp_path):
    run = synthetic.schedule(1, 5)
    synthetic.write_generation(tmp_path, 0, run, [0])
    synthetic.write_generation(tmp_path, 1, run, [5], parent=1)
    with pytest.raises(ConfigError, match="must resume an earlier generation, got 1"):
        open_run(tmp_path)


def test_run_without_its_first_generation_is_refused(tmp_path):
    synthetic.write_generations(tmp_path, schedules((1, 1)))
    (tmp_path / "run.h5").unlink()
    with pytest.raises(ConfigError, match="must be a run directory"):
        open_run(tmp_path)


def test_interval_changes_of_all_generations_are_read(tmp_path):
    for number, before, begun_s in ((0, 0, 0.0), (1, 10, 1.0)):
        folder = generation_directory(tmp_path, number)
        attributes = {"n_ranks": 1, "parent": number - 1, "versions_before": [before], "begun_s": begun_s}
        create_run(folder, config_toml="", attributes=attributes, x0=synthetic.X0)
        with RankLog(folder, LogSettings(0, 1, 1, logs_intervals=True), versions_before=np.array([before])) as log:
            for t_s in (0.5, 1.5):
                log.append_interval(begun_s + t_s, 3, 2 + number, 0.25)
    assert open_run(tmp_path).exchange_intervals.tolist() == [
        (0, 0.5, 3, 2, 0.25), (0, 1.5, 13, 3, 0.25), (0, 2.5, 13, 3, 0.25),
    ]  # fmt: skip


def test_between_model_staleness_counts_only_ranks_of_the_current_generation(tmp_path):
    """Four ranks, then one, then three: ranks that a generation does not have are not counted as stale."""
    synthetic.write_generations(
        tmp_path,
        [synthetic.schedule(4, 30, seed=1), synthetic.schedule(1, 200, seed=2), synthetic.schedule(3, 30, seed=3)],
    )
    run = open_run(tmp_path)
    begun_s = [generation.begun_s for generation in run.generations]
    assert run.n_ranks_at(np.array([-1.0, begun_s[1], begun_s[2] - 1e-6, begun_s[2], 1e9])).tolist() == [4, 1, 1, 3, 3]
    assert run.staleness().between_max < 60
