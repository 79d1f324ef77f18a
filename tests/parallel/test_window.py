"""Windows: what one rank publishes, others read whole, at any time."""

import numpy as np
import pytest

from hpc_dasgd.errors import WindowError
from hpc_dasgd.window import ALIGNMENT_BYTES, N_WORDS, PublicationWindow, Word

SIZES = [1, 2, 4, 8]


def finish(transfer):
    while not transfer.done():
        pass


def header_of(window, target):
    header = np.zeros(N_WORDS, np.int64)
    finish(window.read_header(target, header))
    return header


@pytest.fixture(params=[None, True, False], ids=["probed", "requests", "get-and-flush"])
def request_reads(request):
    return request.param


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_rank_reads_what_every_rank_published(comm, request_reads, dtype):
    window = PublicationWindow(comm, 1000, dtype, n_slots=3, n_versions=2, request_reads=request_reads)
    for number, slot in enumerate(window.slots):
        slot.payload[:] = np.arange(1000) + 10_000 * comm.rank + 1000 * number
        slot.versions[:] = comm.rank, number
    window.publish(5)
    comm.Barrier()
    read = window.buffer()
    for target in range(comm.size):
        assert header_of(window, target)[Word.PUBLICATION] == 5
        for number in range(3):
            finish(window.read_slot(target, number, read))
            assert read.versions.tolist() == [target, number]
            np.testing.assert_array_equal(read.payload, np.arange(1000) + 10_000 * target + 1000 * number)
    comm.Barrier()
    window.free()


@pytest.mark.parallel([2])
def test_parts_of_a_slot_arrive_where_they_belong_and_nowhere_else(comm, request_reads):
    window = PublicationWindow(comm, 100, np.float32, n_slots=2, request_reads=request_reads)
    window.slots[0].payload[:] = -2
    window.slots[1].payload[:] = np.arange(100) + comm.rank
    window.slots[1].versions[0] = 7 + comm.rank
    window.publish(1)
    comm.Barrier()
    other, read = 1 - comm.rank, window.buffer()
    finish(window.read_payload(other, 1, read))
    np.testing.assert_array_equal(read.payload, np.arange(100) + other)
    assert read.versions[0] == 0
    read.payload[:] = -1
    finish(window.read_versions(other, 1, read))
    assert read.versions[0] == 7 + other
    assert np.all(read.payload == -1)
    comm.Barrier()
    window.free()


@pytest.mark.parallel([2])
def test_transfers_larger_than_the_limit_are_split(comm, request_reads, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.window.TRANSFER_LIMIT_BYTES", 1000)
    window = PublicationWindow(comm, 10_001, np.float64, n_slots=1, request_reads=request_reads)
    window.slots[0].payload[:] = np.arange(10_001) + comm.rank
    window.publish(1)
    comm.Barrier()
    read = window.buffer()
    transfer = window.read_slot(1 - comm.rank, 0, read)
    finish(transfer)
    np.testing.assert_array_equal(read.payload, np.arange(10_001) + 1 - comm.rank)
    comm.Barrier()
    window.free()


@pytest.mark.parallel(SIZES)
def test_all_memory_is_aligned(comm):
    window = PublicationWindow(comm, 17, np.float32, n_slots=3, n_versions=3)
    read = window.buffer()
    assert not any(slot.payload.ctypes.data % ALIGNMENT_BYTES for slot in (*window.slots, read))
    assert all(slot.payload.size == 17 and slot.versions.size == 3 for slot in (*window.slots, read))
    window.free()


@pytest.mark.parallel([1, 2])
def test_a_freed_window_says_so(comm):
    window = PublicationWindow(comm, 10, np.float32, n_slots=1)
    read = window.buffer()
    window.free()
    window.free()
    with pytest.raises(WindowError, match="freed"):
        window.read_slot(0, 0, read)
    with pytest.raises(WindowError, match="freed"):
        window.publish(1)


@pytest.mark.parallel([2])
def test_windows_are_freed_cleanly_many_times(comm):
    for _ in range(50):
        window = PublicationWindow(comm, 1 << 16, np.float32, n_slots=3)
        window.slots[0].payload[:] = comm.rank
        window.free()


@pytest.mark.parallel([2])
def test_the_probe_answers_the_same_on_all_ranks(comm):
    window = PublicationWindow(comm, 10, np.float32, n_slots=1)
    assert len(set(comm.allgather(window.requests))) == 1
    window.free()
