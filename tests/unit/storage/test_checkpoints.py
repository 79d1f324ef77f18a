"""Checkpoint files: round trip, detection of damage, and behaviour on disks that fail."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_dasgd.errors import CheckpointError
from hpc_dasgd.storage import checkpoint_file
from hpc_dasgd.storage.checkpoint_file import CheckpointHeader, RankState, SavedCheckpoint
from hpc_dasgd.storage.checkpoint_writer import RETRY_S, CheckpointSchedule, CheckpointWriter

N_PARAMS = 300


def make_header(**changes):
    return CheckpointHeader(
        **{
            "run_id": "0123456789abcdef" * 2,
            "generation": 2,
            "rank": 1,
            "n_ranks": 3,
            "combines": "sum",
            "version": 12,
            "gradients": 40,
            "t_s": 3.25,
            "optimizer": "adam",
            "contributes": True,
            "n_params": N_PARAMS,
            "dtype": "float32",
        }
        | changes
    )


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    first, second, contribution = rng.normal(size=(3, N_PARAMS)).astype(np.float32)
    moments = {"first_moment": first, "second_moment": second, "step": 12}
    return RankState(np.array([3, 12, 25]), contribution, moments)


def read(path):
    checkpoint_file.verify_checksum(path)
    with SavedCheckpoint(path) as saved:
        return RankState(saved.versions, saved.contribution(0, N_PARAMS), saved.optimizer_state)


def assert_same(state, expected):
    assert state.versions.tolist() == expected.versions.tolist()
    assert state.contribution.tobytes() == expected.contribution.tobytes()
    assert set(state.optimizer_state) == set(expected.optimizer_state)
    for name, value in expected.optimizer_state.items():
        assert np.array_equal(state.optimizer_state[name], value), name


def test_checkpoint_round_trip(tmp_path):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(), make_state())
    assert checkpoint_file.read_header(path) == make_header()
    assert_same(read(path), make_state())
    assert [file.name for file in path.parent.iterdir()] == ["rank_00001.0.h5"]
    with SavedCheckpoint(path) as saved:
        assert saved.contribution(10, 20).tolist() == make_state().contribution[10:20].tolist()


def test_checkpoint_is_an_hdf5_file_with_units_and_descriptions(tmp_path):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(), make_state())
    with h5py.File(path) as file:
        assert set(file) == {"contribution", "versions", "optimizer"}
        assert file.attrs["generation"] == 2
        assert file.attrs["version"] == 12
        assert file["optimizer"].attrs["step"] == 12
        for item in (file["contribution"], file["optimizer/first_moment"]):
            assert item.dtype == np.float32
            assert item.attrs["units"] == "1"
            assert item.attrs["description"]


def test_missing_contribution_is_read_as_zeros(tmp_path):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(contributes=False), RankState(np.zeros(3, np.int64), None, None))
    state = read(path)
    assert state.contribution.dtype == np.float32
    assert not state.contribution.any()
    assert state.optimizer_state is None


def test_every_flipped_bit_is_detected(tmp_path):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(), RankState(np.arange(3), np.ones(4, np.float32), {}))
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"rank_00001\.0\.h5"):
            checkpoint_file.read_header(path)
            checkpoint_file.verify_checksum(path)


@pytest.mark.parametrize("kept_bytes", [0, 1, 500, 1024, 1025, -1])
def test_reading_the_header_detects_a_truncated_file(tmp_path, kept_bytes):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(), make_state())
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"rank_00001\.0\.h5"):
        checkpoint_file.read_header(path)


def test_files_that_are_not_checkpoints_are_refused(tmp_path):
    for content in (b"", b"hello", os.urandom(5000), b"hpc_dasgd checkpoint 00000000 {}\n" + bytes(2000)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(CheckpointError, match="file"):
            checkpoint_file.read_header(tmp_path / "file")
    for name in ("directory", "missing"):
        if name == "directory":
            (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=name):
            checkpoint_file.read_header(tmp_path / name)


def test_checkpoints_are_listed_by_rank(tmp_path):
    assert checkpoint_file.list_checkpoints(tmp_path) == {}
    expected = {}
    for rank, slot in ((0, 0), (0, 1), (100_000, 2)):
        path = checkpoint_file.checkpoint_path(tmp_path, rank, slot)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        expected.setdefault(rank, []).append(path)
    (tmp_path / "checkpoint" / ".rank_00000.0.h5.part").touch()
    (tmp_path / "checkpoint" / "notes.txt").touch()
    assert checkpoint_file.list_checkpoints(tmp_path) == expected
    assert [checkpoint_file.slot_of(path) for path in expected[0]] == [0, 1]


def make_writer(directory, warnings, every_s=10.0, keep=2, slot=0, **options):
    return CheckpointWriter(directory, CheckpointSchedule(every_s, keep, slot), warnings.append, **options)


def test_writer_uses_the_slots_in_turn(tmp_path):
    warnings, states = [], [make_state(seed) for seed in range(4)]
    writer = make_writer(tmp_path, warnings, keep=3, slot=1)
    for number, state in enumerate(states):
        writer.begin(make_header(t_s=float(number)), state)
        assert writer.finish()
    times = [checkpoint_file.read_header(checkpoint_file.checkpoint_path(tmp_path, 1, slot)).t_s for slot in range(3)]
    assert times == [2.0, 3.0, 1.0]
    assert_same(read(checkpoint_file.checkpoint_path(tmp_path, 1, 1)), states[3])
    assert warnings == []


def test_writer_copies_the_state_before_begin_returns(tmp_path):
    """The state is modified after `begin`, before the thread writes the file."""
    may_write = threading.Event()
    writer = make_writer(tmp_path, [], before_write=may_write.wait)
    state, expected = make_state(), make_state()
    writer.begin(make_header(), state)
    assert writer.busy
    state.contribution[:] = 0
    state.optimizer_state["first_moment"][:] = 0
    state.versions[:] = 0
    may_write.set()
    assert writer.finish()
    assert_same(read(checkpoint_file.checkpoint_path(tmp_path, 1, 0)), expected)
    assert writer.longest_stall_s > 0


def test_checkpoint_is_due_after_the_interval_unless_one_is_being_written(tmp_path):
    may_write = threading.Event()
    writer = make_writer(tmp_path, [], before_write=may_write.wait)
    writer.reserve(make_state(), now_s=0.0)
    assert not writer.due(9.9)
    assert writer.due(10.0)
    writer.begin(make_header(t_s=10.0), make_state())
    assert not writer.due(100.0)
    may_write.set()
    writer.finish()
    assert not writer.due(19.9)
    assert writer.due(20.0)


def test_failed_checkpoint_is_warned_of_once_and_retried(tmp_path):
    warnings = []
    directory = tmp_path / "run"
    directory.write_text("in the way")
    writer = make_writer(directory, warnings, every_s=1000.0)
    for t_s in (0.0, RETRY_S):
        writer.begin(make_header(t_s=t_s), make_state())
        assert not writer.finish()
        assert not writer.due(t_s + RETRY_S - 0.1)
        assert writer.due(t_s + RETRY_S)
    assert len(warnings) == 1
    assert "rank_00001.0.h5: Not a directory" in warnings[0]
    directory.unlink()
    writer.begin(make_header(), make_state())
    assert writer.finish()
    assert_same(read(checkpoint_file.checkpoint_path(directory, 1, 0)), make_state())


def test_failed_write_leaves_the_previous_file(tmp_path):
    path = checkpoint_file.checkpoint_path(tmp_path, 1, 0)
    checkpoint_file.write_checkpoint(path, make_header(), make_state())
    wrong = RankState(np.arange(3), np.ones(4, np.float32), {"step": object()})
    with pytest.raises(TypeError):
        checkpoint_file.write_checkpoint(path, make_header(), wrong)
    assert_same(read(path), make_state())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("limit", [1500, 3000, 5000, 9000])
def test_disk_that_becomes_full_during_a_write_does_not_crash_the_process(tmp_path, limit):
    """The free space is not known beforehand, as with a quota."""
    program = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.unit.storage.test_checkpoints import make_header, make_state, make_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
warnings = []
writer = make_writer(Path({str(tmp_path)!r}), warnings)
for t_s in (0.0, 10.0):
    writer.begin(make_header(t_s=t_s), make_state())
    assert not writer.finish()
assert len(warnings) == 1, warnings
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_any_exception_in_the_thread_is_warned_of(tmp_path):
    def fail():
        raise MemoryError("no more")

    warnings = []
    writer = make_writer(tmp_path, warnings, before_write=fail)
    writer.begin(make_header(), make_state())
    assert not writer.finish()
    assert len(warnings) == 1
    assert "no more" in warnings[0]
