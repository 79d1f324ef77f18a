"""Opening of runs that are complete, still running, killed or damaged."""

import shutil

import h5py
import numpy as np
import pytest

from hpc_dasgd.analysis.export import export_parameters
from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.config.settings import load_config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.layout import rank_file
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run
from tests.unit import synthetic

N_RANKS = 3
SETTINGS = {"name": "synthetic", "budget": {"gradients": 10}}


def write_run(directory, run, every=1, complete=True, shapes=None, **exchange):
    return synthetic.write_run(
        directory,
        run,
        every,
        config=load_config(SETTINGS | {"exchange": exchange}).to_toml(),
        attributes={"hosts": ["node"] * run.n_ranks},
        shapes=shapes,
        evaluations=[(0.5, 7, 2.0, 0.1)],
        summary={"seconds": 2.5} if complete else None,
    )


@pytest.fixture
def run():
    return synthetic.schedule(N_RANKS, 200, seed=1)


@pytest.mark.parametrize("name", ["", "run.h5"])
def test_a_complete_run_is_read_as_it_was_written(tmp_path, run, name):
    opened = open_run(str(write_run(tmp_path, run) / name))
    counts = [len(times) for times in run.end]
    assert (opened.n_ranks, opened.status, opened.warnings) == (N_RANKS, "complete", [])
    assert opened.config == load_config(SETTINGS)
    assert opened.attributes["hosts"] == ["node"] * N_RANKS
    assert opened.attributes["seconds"] == 2.5
    assert opened.x0.tolist() == [0, 1, 2, 3, 4, 5]
    assert opened.final.tolist() == [1, 2, 3, 4, 5, 6]
    assert opened.gradients.dtype.names == (
        "rank", "t_start_s", "t_end_s", "loss", "gradient_norm", "version", "stepsize",
    )  # fmt: skip
    np.testing.assert_array_equal(opened.gradients["rank"], np.repeat(range(N_RANKS), counts))
    np.testing.assert_array_equal(opened.gradients["t_end_s"], np.concatenate(run.end))
    np.testing.assert_array_equal(opened.gradients["version"], np.concatenate([np.arange(n) for n in counts]))
    for logged, expected in zip(opened.versions, run.versions, strict=True):
        assert logged.dtype == np.uint32
        np.testing.assert_array_equal(logged, expected)
    np.testing.assert_array_equal(opened.evaluation.tolist(), [(0.5, 7, 2.0, 0.1, np.nan)])
    assert opened.exchange_intervals is None


def test_a_run_without_a_later_column_opens(tmp_path, run):
    directory = write_run(tmp_path, run)
    with h5py.File(directory / "rank_00000.h5", "r+") as file:
        del file["evaluation/consensus_distance"]
        del file["gradient/stepsize"]
    opened = open_run(directory)
    assert np.isnan(opened.gradients["stepsize"][: len(run.end[0])]).all()
    assert (opened.gradients["stepsize"][len(run.end[0]) :] == synthetic.STEPSIZE).all()
    np.testing.assert_array_equal(opened.evaluation.tolist(), [(0.5, 7, 2.0, 0.1, np.nan)])
    assert opened.warnings == []


def test_times_are_corrected_for_clock_drift(tmp_path, run):
    summary = {"seconds": 100.0, "clock_drift_s": [0.0, 2.0, -1.0]}
    directory = synthetic.write_run(tmp_path, run, config=load_config(SETTINGS).to_toml(), summary=summary)
    gradients = open_run(directory).gradients
    for rank, rate in enumerate([1.0, 1.02, 0.99]):
        for name, logged in (("t_start_s", run.start), ("t_end_s", run.end)):
            np.testing.assert_allclose(gradients[name][gradients["rank"] == rank], logged[rank] * rate, rtol=1e-15)


def test_changes_of_the_exchange_interval_are_read_by_rank(tmp_path, run):
    directory = write_run(tmp_path, run, complete=False)
    for rank in range(N_RANKS):
        (directory / f"rank_{rank:05d}.h5").unlink()
        with RankLog(directory, LogSettings(rank, N_RANKS, 1, logs_intervals=True)) as log:
            for change in range(rank):
                log.append_interval(0.5 * change, 100 * change, 2 + change, 0.25)
    intervals = open_run(directory).exchange_intervals
    assert intervals.dtype.names == ("rank", "t_s", "version", "every", "overhead")
    assert intervals.tolist() == [(1, 0.0, 0, 2, 0.25), (2, 0.0, 0, 2, 0.25), (2, 0.5, 100, 3, 0.25)]


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_staleness_equals_that_of_the_schedule(tmp_path, run, monkeypatch, memory_bytes, every):
    monkeypatch.setattr(
        "hpc_dasgd.analysis.run_log._MAX_VERSIONS_BYTES", memory_bytes
    )  # 0: vectors are read from the files in pieces
    expected = synthetic.measured(run, every)
    staleness = open_run(write_run(tmp_path, run, every)).staleness()
    assert staleness.as_dict() == expected.as_dict()


def test_settings_that_limit_the_log_give_a_warning(tmp_path, run):
    elementwise = open_run(write_run(tmp_path / "a", run, consistency="elementwise"))
    assert any("exact only to within" in warning for warning in elementwise.warnings)
    independent = open_run(write_run(tmp_path / "b", run, kind="none"))
    assert any("independent" in warning for warning in independent.warnings)


def test_staleness_without_version_vectors_raises_and_names_the_setting(tmp_path, run):
    opened = open_run(write_run(tmp_path, run, every=0))
    assert opened.versions is None
    assert opened.gradients.size == 200
    with pytest.raises(ConfigError, match=r"`log.versions`"):
        opened.staleness()


def test_if_every_kth_vector_was_logged_these_are_returned_with_a_warning(tmp_path, run):
    opened = open_run(write_run(tmp_path, run, every=4))
    for logged, expected in zip(opened.versions, run.versions, strict=True):
        np.testing.assert_array_equal(logged, expected[::4])
    assert any("one gradient in 4:" in warning for warning in opened.warnings)


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_opens_while_it_is_written_and_after_it_was_killed(writer, killed, monkeypatch):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    config = load_config(SETTINGS).to_toml()
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml=config, attributes={"n_ranks": 1}, x0=np.zeros(2))
    log.rename(writer.path)
    writer.append_1000(1000)
    if killed:
        writer.kill()
    opened = open_run(writer.directory)
    assert opened.status == "running"
    assert any("not complete" in warning for warning in opened.warnings)
    np.testing.assert_array_equal(opened.gradients["loss"], np.arange(1001))
    assert opened.evaluation["loss"].tolist() == [0, 1000]
    assert opened.staleness().as_dict()["S_max"] == 0
    with pytest.raises(ConfigError, match="status is 'running'"):
        opened.parameters()


@pytest.mark.parametrize("every", [1, 4])
def test_data_sets_of_unequal_length_are_cut_to_complete_rows(tmp_path, run, every):
    write_run(tmp_path, run, every)
    with h5py.File(tmp_path / rank_file(1), "r+") as file:
        file["gradient/loss"].resize(13, axis=0)
    opened = open_run(tmp_path)
    assert opened.counts.tolist() == [len(run.end[0]), 13, len(run.end[2])]
    np.testing.assert_array_equal(opened.gradients["loss"][opened.gradients["rank"] == 1], 1 + np.arange(13) / 1000)
    np.testing.assert_array_equal(opened.versions[1], run.versions[1][:13:every])
    assert [warning for warning in opened.warnings if "is cut to 13 gradients" in warning]
    assert opened.staleness().as_dict()["gradients"] == opened.counts.sum()


def test_gradients_without_a_written_version_vector_are_cut(tmp_path, run):
    write_run(tmp_path, run, every=4)
    with h5py.File(tmp_path / rank_file(1), "r+") as file:
        file["gradient/versions"].resize(5, axis=0)
    assert open_run(tmp_path).counts[1] == 20


@pytest.mark.parametrize("is_hdf5", [False, True])
def test_a_missing_or_damaged_rank_counts_as_idle_with_a_warning(tmp_path, run, is_hdf5):
    write_run(tmp_path, run)
    (tmp_path / rank_file(0)).write_bytes(b"not HDF5")
    if is_hdf5:
        h5py.File(tmp_path / rank_file(0), "w").close()
    (tmp_path / rank_file(2)).unlink()
    opened = open_run(tmp_path)
    assert opened.counts.tolist() == [0, len(run.end[1]), 0]
    assert opened.evaluation.size == 0
    assert [warning.split()[0] for warning in opened.warnings] == ["rank_00000.h5", "rank_00002.h5"]
    numbers = opened.staleness().as_dict()
    assert [row["S_avg"] for row in numbers["per_rank"]] == [None, 0.0, None]
    assert any("rank_00002.h5 is missing" in warning for warning in opened.warnings)


def test_a_run_without_gradients_has_no_staleness(tmp_path, run):
    run.versions = [vectors[:0] for vectors in run.versions]
    opened = open_run(write_run(tmp_path, run))
    assert opened.gradients.size == 0
    with pytest.raises(ConfigError, match="holds no gradients yet"):
        opened.staleness()


def test_contradictory_version_vectors_are_reported_as_damage(tmp_path, run):
    run.versions[0][:, 0] += 1
    with pytest.raises(ConfigError, match=r"is damaged: .* updates of its own"):
        open_run(write_run(tmp_path, run)).staleness()


def test_unreadable_settings_raise_only_when_they_are_used(tmp_path, run):
    write_run(tmp_path, run)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        file.attrs["config"] = 'flavour = "strange"\n'
    opened = open_run(tmp_path)
    assert opened.gradients.size == 200
    with pytest.raises(ConfigError, match=r"this version cannot read the settings of .*flavour"):
        _ = opened.config


def test_opening_anything_but_a_run_raises_with_a_one_line_message(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "other.h5", tmp_path / "text"):
        with pytest.raises(ConfigError, match=r"must be a run directory or its run.h5") as caught:
            open_run(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_newer_schema_raises(tmp_path, run):
    write_run(tmp_path, run)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        file.attrs["schema"] = 99
    with pytest.raises(ConfigError, match="schema of at most 1, got 99"):
        open_run(tmp_path)


@pytest.mark.parametrize("name", ["parameters.npz", "no_suffix"])
def test_export_writes_names_and_shapes_to_exactly_that_path(tmp_path, run, name):
    shapes = {"0.weight": (2, 2), "file": (1,), "scalar": ()}
    opened = open_run(write_run(tmp_path / "run", run, shapes=shapes))
    export_parameters(opened, tmp_path / name)
    with np.load(tmp_path / name) as stored:
        assert {key: stored[key].tolist() for key in stored} == {
            "0.weight": [[1.0, 2.0], [3.0, 4.0]], "file": [5.0], "scalar": 6.0,
        }  # fmt: skip
        assert stored["file"].dtype == np.float32


def test_export_without_names_is_one_vector(tmp_path, run):
    export_parameters(open_run(write_run(tmp_path / "run", run)), tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as stored:
        assert {key: stored[key].tolist() for key in stored} == {"parameters": [1, 2, 3, 4, 5, 6]}


def test_export_raises_without_parameters_and_without_a_writable_path(tmp_path, run):
    write_run(tmp_path / "run", run, complete=False)
    with pytest.raises(ConfigError, match="has no final parameters"):
        export_parameters(open_run(tmp_path / "run"), tmp_path / "p.npz")
    assert not (tmp_path / "p.npz").exists()
    complete_run(tmp_path / "run", final=np.zeros(6), attributes={})
    opened = open_run(tmp_path / "run")
    for path in (tmp_path, tmp_path / "nowhere" / "p.npz"):
        with pytest.raises(ConfigError, match="cannot write parameters to"):
            export_parameters(opened, path)


def test_a_moved_run_opens(tmp_path, run):
    shutil.move(write_run(tmp_path / "here", run), tmp_path / "there")
    assert open_run(tmp_path / "there").staleness().as_dict()["gradients"] == 200
