"""The log of a rank: while it grows, after an exception, after a kill, and on disks that fail."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout, log_writer
from hpc_dasgd.storage.layout import rank_file
from hpc_dasgd.storage.log_segment import LogSettings


def test_full_buffers_are_written_in_order(tmp_path):
    n_gradients, every = 10_001, 3
    with log_writer.RankLog(tmp_path, LogSettings(0, 2, every)) as log:
        for k in range(n_gradients):
            log.append(0.0, 0.0, k, 2 * k, k, np.array([k, k + 1]))
    with h5py.File(tmp_path / rank_file(0)) as file:
        np.testing.assert_array_equal(file["gradient/loss"], np.arange(n_gradients))
        np.testing.assert_array_equal(file["gradient/versions"][:, 1], np.arange(1, n_gradients + 1, every))
        np.testing.assert_array_equal(file["gradient/versions_row"], np.arange(0, n_gradients, every))


def test_rows_logged_before_an_exception_are_in_the_file(tmp_path):
    with pytest.raises(ZeroDivisionError), log_writer.RankLog(tmp_path, LogSettings(0, 1, 1)) as log:
        log.append(0.0, 0.1, 3.0, 1.0, 0, np.zeros(1, int))
        raise ZeroDivisionError
    with h5py.File(tmp_path / rank_file(0)) as file:
        assert file["gradient/loss"][:].tolist() == [3.0]


def test_log_can_be_read_while_another_process_writes_it(writer):
    with h5py.File(writer.path, swmr=True) as file:
        data_sets = (file["gradient/loss"], file["gradient/versions"], file["evaluation/t_s"])
        for last in (1000, 2000, 3000):
            writer.append_1000(last)
            for data_set in data_sets:
                data_set.refresh()
            np.testing.assert_array_equal(file["gradient/loss"], np.arange(last + 1))
            np.testing.assert_array_equal(file["gradient/versions"][:, 0], np.arange(last + 1))
            np.testing.assert_array_equal(file["evaluation/t_s"], np.arange(0, last + 1, 1000))


def test_log_of_a_killed_process_opens(writer):
    writer.append_1000(1000)
    writer.kill()
    with h5py.File(writer.path, swmr=True) as file:
        np.testing.assert_array_equal(file["gradient/version"], np.arange(1001))
        np.testing.assert_array_equal(file["gradient/versions"][:, 0], np.arange(1001))
        np.testing.assert_array_equal(file["evaluation/loss"], [0, 1000])


def test_rows_are_flushed_after_the_flush_interval(tmp_path):
    log = log_writer.RankLog(tmp_path, LogSettings(0, 1, 1))
    with log, h5py.File(tmp_path / rank_file(0), swmr=True) as file:
        loss = file["gradient/loss"]
        for k, (end, expected) in enumerate([(0.1, 0), (layout.FLUSH_EVERY_S + 0.1, 2), (2.2, 2), (4.5, 4)]):
            log.append(end, end, 1.0, 1.0, k, np.array([k]))
            loss.refresh()
            assert len(loss) == expected


@pytest.mark.parametrize("every", [0, 1, 7])
def test_version_vectors_are_logged_of_every_nth_version(tmp_path, every):
    with log_writer.RankLog(tmp_path, LogSettings(2, 3, every)) as log:
        for k in range(15):
            log.append(0.0, 0.0, 0.0, 0.0, k, np.array([k, 100, 2 * k]))
    with h5py.File(tmp_path / rank_file(2)) as file:
        assert file["gradient/version"][:].tolist() == list(range(15))
        expected = {
            0: None,
            1: [[k, 100, 2 * k] for k in range(15)],
            7: [[0, 100, 0], [7, 100, 14], [14, 100, 28]],
        }
        logged = file["gradient/versions"][:].tolist() if "versions" in file["gradient"] else None
        assert logged == expected[every]


def test_log_file_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / rank_file(0)).touch()
    with pytest.raises(ConfigError, match=r"cannot make log file .*/rank_00000.h5: File exists"):
        log_writer.RankLog(tmp_path, LogSettings(0, 1, 1))
    with pytest.raises(ConfigError, match=r"cannot make log file .*: No such file or directory"):
        log_writer.RankLog(tmp_path / "nowhere", LogSettings(0, 1, 1))


# Logs of a resumed run.


@pytest.mark.parametrize("every", [1, 3])
def test_later_generation_counts_over_all_generations(tmp_path, every):
    with log_writer.RankLog(
        tmp_path, LogSettings(1, 2, every, logs_intervals=True), versions_before=np.array([100, 10, 7])
    ) as log:
        for k in range(5):
            log.append(0.0, 0.0, 0.0, 0.0, k, np.array([2 * k, k]))
        log.append_evaluation(1.0, 9, 0.5, 0.5)
        log.append_interval(1.0, 4, 2, 0.1)
    with h5py.File(tmp_path / rank_file(1)) as file:
        assert dict(file.attrs) == {"schema": 1, "rank": 1, "n_ranks": 2, "versions_every": every, "first_version": 10}
        assert file["gradient/version"][:].tolist() == [10, 11, 12, 13, 14]
        logged = [k for k in range(5) if (10 + k) % every == 0]
        assert file["gradient/versions"][:].tolist() == [[100 + 2 * k, 10 + k, 7] for k in logged]
        assert every == 1 or file["gradient/versions_row"][:].tolist() == logged
        assert file["gradient/source_rank"][:].tolist() == [0, 1, 2]
        assert file["evaluation/gradients"][:].tolist() == [126]
        assert file["pace/version"][:].tolist() == [14]


# Disks that fail.


def fill(log, versions, n_ranks=1):
    for k in versions:
        log.append(k / 1e4, k / 1e4, k, k, k, np.full(n_ranks, k))


def logged(directory, n_segments):
    """Return the losses in the existing segments, each cut where the next begins, and the first version of each."""
    losses, firsts = [], []
    paths = [path for segment in range(n_segments) if (path := directory / rank_file(0, segment)).exists()]
    for path in paths:
        with h5py.File(path) as file:
            n_complete = int(file["whole/gradient"][()])
            rows = file["gradient/loss"][: n_complete if n_complete >= 0 else None].tolist()
            np.testing.assert_array_equal(file["gradient/versions"][: len(rows), 0], rows)
            np.testing.assert_array_equal(file["gradient/version"][: len(rows)], rows)
        firsts.append(int(file_attribute(path, "first_version")))
        losses = [loss for loss in losses if loss < firsts[-1]] + rows
    return losses, firsts


def file_attribute(path, name):
    with h5py.File(path) as file:
        return file.attrs[name]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_log_continues_in_another_segment_after_its_file_was_deleted(tmp_path, kind):
    directory, warnings = tmp_path / "run", []
    directory.mkdir()
    with log_writer.RankLog(directory, LogSettings(0, 1, 1), warn=warnings.append) as log:
        fill(log, range(100))
        assert log.flush() and log.sync()
        shutil.rmtree(directory) if kind == "directory" else (directory / rank_file(0)).unlink()
        fill(log, range(100, 200))
        assert not log.flush()
        assert log.sync()
        fill(log, range(200, 300))
    assert log.missing == ["log of rank 0: 100 gradients were in a file that was deleted"]
    assert warnings == [f"log of rank 0 in {directory}: its file was deleted; the log continues in another file"]
    assert logged(directory, 3) == (list(range(100, 300)), [100])
    assert sorted(path.name for path in directory.iterdir()) == [rank_file(0, 1)]


def test_rows_wait_in_memory_while_the_directory_is_missing(tmp_path, monkeypatch, capsys):
    """A file of the directory's name prevents creating it, also for root."""
    monkeypatch.setattr(log_writer, "_RETRY_S", 0.0)
    directory = tmp_path / "run"
    directory.mkdir()
    with log_writer.RankLog(directory, LogSettings(0, 1, 1, logs_intervals=True)) as log:
        assert log.flush()
        shutil.rmtree(directory)
        directory.touch()
        fill(log, range(10_000))
        log.append_evaluation(1.0, 2, 3.0, 4.0)
        log.append_interval(1.0, 2, 3, 0.5)
        assert not log.flush()
        assert log.missing[0].startswith("log of rank 0: 10000 gradients could not be written: ")
        directory.unlink()
        assert log.flush() and log.sync()
        fill(log, range(10_000, 10_010))
    assert log.missing == []
    assert logged(directory, 2) == (list(range(10_010)), [0])
    with h5py.File(directory / rank_file(0, 1)) as file:
        assert file["evaluation/t_s"][:].tolist() == [1.0] and file["pace/every"][:].tolist() == [3]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_failed_write_is_not_retried_at_each_step(tmp_path, monkeypatch):
    directory, attempts = tmp_path / "run", []
    directory.mkdir()
    with log_writer.RankLog(directory, LogSettings(0, 1, 1), warn=lambda text: None) as log:
        monkeypatch.setattr(log_writer, "require_space", lambda *arguments: attempts.append(arguments))
        shutil.rmtree(directory)
        directory.touch()
        fill(log, range(20_000))
        assert len(attempts) == 0  # the directory cannot be created, which is tried first
        directory.unlink()
        fill(log, range(20_000, 40_000))
        assert len(attempts) == 0
    assert len(attempts) > 1 and log.missing == []
    assert logged(directory, 2) == (list(range(40_000)), [0])


def test_sync_may_be_called_from_another_thread(tmp_path):
    with log_writer.RankLog(tmp_path, LogSettings(0, 1, 1)) as log, ThreadPoolExecutor(1) as pool:
        synced = []
        for first in range(0, 50_000, 1000):
            synced.append(pool.submit(log.sync))
            fill(log, range(first, first + 1000))
        assert all(future.result() for future in synced)
        (tmp_path / rank_file(0)).unlink()
        assert not pool.submit(log.sync).result()


def test_rows_beyond_the_memory_limit_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, "_MEMORY_BYTES", 1 << 20)
    directory = tmp_path / "run"
    directory.mkdir()
    with log_writer.RankLog(directory, LogSettings(0, 1, 1), warn=lambda text: None) as log:
        shutil.rmtree(directory)
        directory.touch()
        fill(log, range(100_000))
        directory.unlink()
        assert not log.flush()
        n_dropped = int(re.fullmatch(r"log of rank 0: (\d+) gradients were dropped .*", *log.missing)[1])
        n_kept = (1 << 20) // (log._rows.itemsize + 4)
        assert n_kept - 2 * 4096 <= 100_000 - n_dropped <= n_kept + 4096
    assert logged(directory, 2) == (list(range(n_dropped, 100_000)), [n_dropped])


def test_log_continues_when_a_full_disk_has_space_again(small_disk, monkeypatch):
    """No write to the full disk is attempted, so that the log continues in the same file."""
    monkeypatch.setattr(log_writer, "_SPARE_BYTES", 1 << 20)
    monkeypatch.setattr(log_writer, "_MIN_SPARE_BYTES", 1 << 19)
    monkeypatch.setattr(log_writer, "_RETRY_S", 0.0)
    warnings = []
    with log_writer.RankLog(small_disk, LogSettings(0, 1, 1), warn=warnings.append) as log:
        fill(log, range(1000))
        assert log.flush()
        (small_disk / "other").write_bytes(bytes(3 << 20))
        fill(log, range(1000, 9000))
        assert not log.flush()
        assert log.missing == ["log of rank 0: 8000 gradients could not be written: No space left on device"]
        (small_disk / "other").unlink()
        assert log.flush()
        fill(log, range(9000, 10_000))
    assert log.missing == []
    assert len(warnings) == 1 and "No space left on device; rows wait in memory" in warnings[0]
    assert logged(small_disk, 2) == (list(range(10_000)), [0])


FULL = """
import sys
from pathlib import Path
import numpy as np
from hpc_dasgd.storage import log_writer
from hpc_dasgd.storage.log_segment import LogSettings
log_writer.require_space = lambda *arguments: None
log_writer._RETRY_S = 0.0
folder, frees = Path(sys.argv[1]), sys.argv[2] == "freed"
n = 0
with log_writer.RankLog(folder, LogSettings(0, 4, 1)) as log:
    while not log.missing:
        log.append(n / 1e4, n / 1e4, n, n, n, np.full(4, n))
        n += 1
    if frees:
        (folder / "other").unlink()
        assert log.flush()
        for n in range(n, n + 1000):
            log.append(n / 1e4, n / 1e4, n, n, n, np.full(4, n))
        n += 1
print(n, log.missing)
"""


@pytest.mark.parametrize("freed", ["freed", "full"])
def test_log_continues_in_another_segment_after_a_failed_write(small_disk, freed):
    """In a separate process, since HDF5 may crash a process at its exit after a failed write."""
    (small_disk / "other").write_bytes(bytes(2 << 20))
    command = [sys.executable, "-c", FULL, str(small_disk), freed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "No space left on device" in done.stderr
    n, missing = done.stdout.split(" ", 1)
    losses, firsts = logged(small_disk, 9)
    assert losses == list(range(len(losses)))
    if freed == "freed":
        assert missing == "[]\n" and len(losses) == int(n) and len(firsts) > 1
    else:
        assert len(firsts) == 1 and len(list(small_disk.iterdir())) == 2
        assert len(losses) > 10_000 and f"{int(n) - len(losses)} gradients could not be written: No space" in missing
