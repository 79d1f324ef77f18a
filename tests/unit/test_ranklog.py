"""What a rank's file holds: while it grows, after an exception, after a kill."""

import h5py
import numpy as np
import pytest

from hpc_dasgd import ranklog
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.schema import rank_file


def test_full_buffers_go_to_the_file_in_order(tmp_path):
    n_gradients, every = 10_001, 3
    with ranklog.RankLog(tmp_path, 0, 2, every) as log:
        for k in range(n_gradients):
            log.append(0.0, 0.0, k, 2 * k, k, np.array([k, k + 1]))
    with h5py.File(tmp_path / rank_file(0)) as file:
        np.testing.assert_array_equal(file["gradient/loss"], np.arange(n_gradients))
        np.testing.assert_array_equal(file["gradient/versions"][:, 1], np.arange(1, n_gradients + 1, every))
        np.testing.assert_array_equal(file["gradient/versions_row"], np.arange(0, n_gradients, every))


def test_what_was_logged_before_an_exception_is_in_the_file(tmp_path):
    with pytest.raises(ZeroDivisionError), ranklog.RankLog(tmp_path, 0, 1, 1) as log:
        log.append(0.0, 0.1, 3.0, 1.0, 0, np.zeros(1, int))
        raise ZeroDivisionError
    with h5py.File(tmp_path / rank_file(0)) as file:
        assert file["gradient/loss"][:].tolist() == [3.0]


def test_a_log_can_be_read_while_another_process_writes_it(writer):
    with h5py.File(writer.path, swmr=True) as file:
        data_sets = (file["gradient/loss"], file["gradient/versions"], file["evaluation/t_s"])
        for last in (1000, 2000, 3000):
            writer.append_1000(last)
            for data_set in data_sets:
                data_set.refresh()
            np.testing.assert_array_equal(file["gradient/loss"], np.arange(last + 1))
            np.testing.assert_array_equal(file["gradient/versions"][:, 0], np.arange(last + 1))
            np.testing.assert_array_equal(file["evaluation/t_s"], np.arange(0, last + 1, 1000))


def test_a_killed_process_leaves_a_file_that_opens(writer):
    writer.append_1000(1000)
    writer.kill()
    with h5py.File(writer.path, swmr=True) as file:
        np.testing.assert_array_equal(file["gradient/version"], np.arange(1001))
        np.testing.assert_array_equal(file["gradient/versions"][:, 0], np.arange(1001))
        np.testing.assert_array_equal(file["evaluation/loss"], [0, 1000])


def test_rows_are_flushed_when_they_are_old(tmp_path):
    log = ranklog.RankLog(tmp_path, 0, 1, 1)
    with log, h5py.File(tmp_path / rank_file(0), swmr=True) as file:
        loss = file["gradient/loss"]
        for k, (end, expected) in enumerate([(0.1, 0), (ranklog.FLUSH_EVERY_S + 0.1, 2), (2.2, 2), (4.5, 4)]):
            log.append(end, end, 1.0, 1.0, k, np.array([k]))
            loss.refresh()
            assert len(loss) == expected


@pytest.mark.parametrize("every", [0, 1, 7])
def test_versions_are_logged_as_seldom_as_asked(tmp_path, every):
    with ranklog.RankLog(tmp_path, 2, 3, every) as log:
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


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / rank_file(0)).touch()
    with pytest.raises(ConfigError, match=r"cannot make log file .*/rank_00000.h5: File exists"):
        ranklog.RankLog(tmp_path, 0, 1, 1)
    with pytest.raises(ConfigError, match=r"cannot make log file .*: No such file or directory"):
        ranklog.RankLog(tmp_path / "nowhere", 0, 1, 1)
