"""``run.h5``: its layout, the joined logs, and behaviour on disks that fail."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.layout import (
    EVALUATION_COLUMNS,
    GENERATION,
    GRADIENT_COLUMNS,
    INTERVAL_COLUMNS,
    RANK,
    SOURCE_RANK,
    VERSIONS,
    VERSIONS_ROW,
    rank_file,
)
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run, stop_run
from tests.unit import synthetic

N_RANKS = 3
ENDING = {"final": synthetic.X0, "attributes": {}}


def write_run(directory, run, every=1):
    return synthetic.write_run(
        directory,
        run,
        every,
        config="seed = 1\n",
        attributes={"hosts": ["north", "süd", "west"], "seed": 2**64 - 1},
        shapes={"weight": (2, 2), "bias": (2,)},
        evaluations=[(0.5, 7, 2.0, np.nan), (1.5, 9, 1.0, 0.5)],
        summary={"seconds": 2.5, "n_reads": 4},
    )


@pytest.fixture
def run():
    return synthetic.schedule(N_RANKS, 200, seed=1)


def data_sets(file):
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def layout(file):
    return {name: (data_set.shape, data_set.dtype.str) for name, data_set in data_sets(file).items()}


def gradient_layout(n):
    return {
        "gradient/t_start_s": ((n,), "<f8"),
        "gradient/t_end_s": ((n,), "<f8"),
        "gradient/loss": ((n,), "<f8"),
        "gradient/gradient_norm": ((n,), "<f8"),
        "gradient/version": ((n,), "<u4"),
        "gradient/stepsize": ((n,), "<f8"),
        "evaluation/t_s": ((2,), "<f8"),
        "evaluation/gradients": ((2,), "<i8"),
        "evaluation/loss": ((2,), "<f8"),
        "evaluation/accuracy": ((2,), "<f8"),
        "evaluation/consensus_distance": ((2,), "<f8"),
    }


VECTORS = {0: lambda n: {}}
VECTORS[1] = lambda n: {
    "gradient/versions": ((n, N_RANKS), "<u4"),
    "gradient/source_rank": ((N_RANKS,), "<i4"),
}
VECTORS[7] = lambda n: VECTORS[1](n) | {"gradient/versions_row": ((n,), "<i8")}


def test_attributes_hold_the_hosts_of_many_ranks(tmp_path):
    hosts = [f"node{rank // 8:05d}" for rank in range(20_000)]
    create_run(tmp_path, config_toml="", attributes={"hosts": hosts, "nodes": list(range(20_000))}, x0=np.zeros(2))
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["hosts"].tolist() == hosts
        assert file.attrs["nodes"].tolist() == list(range(20_000))


@pytest.mark.parametrize("every", [0, 1, 7])
def test_files_have_the_documented_layout(tmp_path, run, every):
    write_run(tmp_path, run, every)
    counts = [len(times) for times in run.end]
    n_vectors = [len(times[:: every or 1]) for times in run.end]
    with h5py.File(tmp_path / "rank_00000.h5") as file:
        whole = {"whole/gradient": ((), "<i8"), "whole/evaluation": ((), "<i8")}
        assert layout(file) == gradient_layout(counts[0]) | VECTORS[every](n_vectors[0]) | whole
        assert [data_set[()] for data_set in file["whole"].values()] == [-1, -1]
        assert dict(file.attrs) == {
            "schema": 1,
            "rank": 0,
            "n_ranks": N_RANKS,
            "versions_every": every,
            "first_version": 0,
        }
    with h5py.File(tmp_path / "run.h5") as file:
        expected = gradient_layout(sum(counts)) | VECTORS[every](sum(n_vectors))
        expected |= {f"gradient/{name}": ((sum(counts),), "<i4") for name in ("rank", "generation")}
        expected |= {"parameter": ((6,), "|i1")}
        assert layout(file) == expected | {"x0": ((6,), "<f4"), "final": ((6,), "<f4")}


def test_file_format_page_lists_every_column():
    page = (Path(__file__).parents[3] / "docs" / "file-format.md").read_text()
    groups = {
        "gradient": (*GRADIENT_COLUMNS, VERSIONS, VERSIONS_ROW, SOURCE_RANK, RANK, GENERATION),
        "evaluation": EVALUATION_COLUMNS,
        "pace": INTERVAL_COLUMNS,
    }
    for group, columns in groups.items():
        for column in columns:
            assert re.search(rf"`/{group}/{column.name}` \| {np.dtype(column.dtype)} \| .* \| {column.units} \|", page)


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("name", ["rank_00001.h5", "run.h5"])
def test_every_data_set_has_units_a_description_and_one_scale_per_axis(tmp_path, run, name, every):
    with h5py.File(write_run(tmp_path, run, every) / name) as file:
        for data_set in data_sets(file).values():
            assert data_set.attrs["units"] in ("s", "1"), data_set.name
            assert len(data_set.attrs["description"]) > 10, data_set.name
            if not data_set.is_scale:
                for length, dimension in zip(data_set.shape, data_set.dims, strict=True):
                    assert [scale.shape for scale in dimension.values()] == [(length,)], data_set.name


def test_run_file_holds_attributes_and_parameters(tmp_path, run):
    with h5py.File(write_run(tmp_path, run) / "run.h5") as file:
        attributes = dict(file.attrs)
        assert attributes.pop("hosts").tolist() == ["north", "süd", "west"]
        assert attributes == {
            "schema": 1,
            "status": "complete",
            "config": "seed = 1\n",
            "n_ranks": N_RANKS,
            "seed": 2**64 - 1,
            "seconds": 2.5,
            "n_reads": 4,
        }
        assert file["x0"][:].tolist() == [0, 1, 2, 3, 4, 5]
        assert file["final"][:].tolist() == [1, 2, 3, 4, 5, 6]
        for name in ("x0", "final"):
            assert json.loads(file[name].attrs["parameter_shapes"]) == {"weight": [2, 2], "bias": [2]}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *map(rank_file, range(N_RANKS)),
        "run.h5",
    ]


def test_run_file_has_status_running_before_the_end(tmp_path):
    create_run(tmp_path / "a" / "b", config_toml="", attributes={}, x0=np.zeros(2))
    with h5py.File(tmp_path / "a" / "b" / "run.h5") as file:
        assert file.attrs["status"] == "running"
        assert set(file) == {"x0", "parameter"}


@pytest.mark.parametrize("every", [1, 7])
def test_virtual_data_sets_hold_the_logs_after_the_directory_was_moved(tmp_path, run, every):
    write_run(tmp_path / "here", run, every)
    shutil.move(tmp_path / "here", tmp_path / "there")
    with h5py.File(tmp_path / "there" / "run.h5") as file:
        gradient = file["gradient"]
        counts = [len(times) for times in run.end]
        expected = {
            "rank": np.repeat(range(N_RANKS), counts),
            "version": np.concatenate([np.arange(n) for n in counts]),
            "t_start_s": np.concatenate(run.start),
            "t_end_s": np.concatenate(run.end),
            "loss": np.concatenate([rank + np.arange(n) / 1000 for rank, n in enumerate(counts)]),
            "gradient_norm": np.concatenate([10.0 + np.arange(n) for n in counts]),
            "versions": np.concatenate([vectors[::every] for vectors in run.versions]),
        }
        for name, values in expected.items():
            np.testing.assert_array_equal(gradient[name], values, err_msg=name)
        logged = gradient["versions_row"][:] if every > 1 else np.arange(sum(counts))
        np.testing.assert_array_equal(gradient["version"][:][logged] % every, 0)
        np.testing.assert_array_equal(
            gradient["versions"][:][np.arange(logged.size), gradient["rank"][:][logged]],
            gradient["version"][:][logged],
        )
        for name in set(expected) - {"rank"}:
            sources = [source.file_name for source in gradient[name].virtual_sources()]
            assert sources == [rank_file(rank) for rank in range(N_RANKS)], name
        assert file["evaluation/gradients"][:].tolist() == [7, 9]
        np.testing.assert_array_equal(file["evaluation/accuracy"], [np.nan, 0.5])


def test_run_without_gradients_can_be_completed(tmp_path):
    create_run(tmp_path, config_toml="", attributes={"n_ranks": 1}, x0=np.zeros(2))
    with RankLog(tmp_path, LogSettings(0, 1, 2)):
        pass
    complete_run(tmp_path, final=np.ones(2), attributes={})
    with h5py.File(tmp_path / "run.h5") as file:
        assert {data_set.shape[0] for name, data_set in data_sets(file["gradient"]).items()} == {0, 1}


def test_log_that_was_not_closed_is_left_out_of_the_completed_run(tmp_path):
    create_run(tmp_path, config_toml="", attributes={"n_ranks": 3}, x0=np.zeros(2))
    (tmp_path / "aside").mkdir()
    with RankLog(tmp_path / "aside", LogSettings(1, 3, 1)) as log:
        log.append_evaluation(0.0, 0, 1.0, 1.0)
        shutil.copy(tmp_path / "aside" / rank_file(1), tmp_path)  # as a kill leaves it: not closed
    with RankLog(tmp_path, LogSettings(0, 3, 1)) as log:
        log.append(0.0, 0.1, 3.0, 1.0, 0, np.zeros(3, int))
    complete_run(tmp_path, final=np.ones(2), attributes={})
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["gradient/rank"][:].tolist() == [0]
        assert file["gradient/loss"][:].tolist() == [3.0]


@pytest.mark.parametrize("name", ["run.h5", "rank_00004.h5"])
def test_directory_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="`--run` must be a directory that holds no run yet, got") as caught:
        create_run(tmp_path, config_toml="", attributes={}, x0=np.zeros(2))
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_killed_start_leaves_no_partial_run_file(tmp_path):
    script = """
import collections, os, signal, sys
from pathlib import Path
import numpy as np
from hpc_dasgd.storage.run_file import create_run

class Killing(collections.UserDict):
    def __getitem__(self, name):
        os.kill(os.getpid(), signal.SIGKILL)

create_run(Path(sys.argv[1]), config_toml="", attributes=Killing(n_ranks=1), x0=np.zeros(2))
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir())
    assert not (tmp_path / "run.h5").exists()
    create_run(tmp_path, config_toml="", attributes={"n_ranks": 1}, x0=np.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_run_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make run directory .*/file/run: Not a directory"):
        create_run(tmp_path / "file" / "run", config_toml="", attributes={}, x0=np.zeros(2))


def test_full_disk_is_reported_and_leaves_the_run_unchanged(small_disk, run):
    write = functools.partial(synthetic.write_run, run=run)
    write(small_disk / "run")
    before = (small_disk / "run" / "run.h5").read_bytes()
    (small_disk / "other").write_bytes(bytes(3 << 20))
    for call in (lambda: stop_run(small_disk / "run", {}), lambda: complete_run(small_disk / "run", **ENDING)):
        with pytest.raises(ConfigError, match=r"cannot make run file .*run.h5: No space left on device"):
            call()
    with pytest.raises(ConfigError, match=r"cannot make run directory .*: No space left on device"):
        write(small_disk / "another")
    assert (small_disk / "run" / "run.h5").read_bytes() == before
    assert sorted(path.name for path in (small_disk / "run").iterdir()) == [*map(rank_file, range(3)), "run.h5"]
    (small_disk / "other").unlink()
    complete_run(small_disk / "run", **ENDING)


UNCHECKED = """
import sys
from pathlib import Path
import numpy as np
from hpc_dasgd.storage import run_file
from hpc_dasgd.errors import ConfigError
run_file.require_space = lambda *arguments: None
attributes = {"n_ranks": 1, "hosts": ["a" * 100] * 1000}
for n_params in (100, 30_000, 3_000_000):
    try:
        directory, x0 = Path(sys.argv[1]) / str(n_params), np.ones(n_params)
        run_file.create_run(directory, config_toml="", attributes=attributes, x0=x0)
    except ConfigError as error:
        print(error)
"""


@pytest.mark.parametrize("free_kib", [2000, 300, 200, 140, 100, 40, 0])
def test_disk_with_less_space_than_reported_does_not_crash_the_process(small_disk, free_kib):
    """As with a quota; in a separate process, since HDF5 may crash a process at its exit after a failed write."""
    (small_disk / "other").write_bytes(bytes((4096 - free_kib - 12) << 10))
    done = subprocess.run([sys.executable, "-c", UNCHECKED, small_disk], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert 1 <= len(messages) <= 3 and all("No space left on device" in text for text in messages)


def test_shapes_must_add_up_to_the_number_of_parameters(tmp_path):
    with pytest.raises(ConfigError, match="must add up to 4 parameters, got 5"):
        create_run(tmp_path, config_toml="", attributes={}, x0=np.zeros(4), parameter_shapes={"w": (2, 2), "b": (1,)})
    assert not list(tmp_path.iterdir())
