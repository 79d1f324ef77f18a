"""Windows: ranks read whole publications of other ranks at any time, and add to the memory of other ranks."""

import numpy as np
import pytest

from hpc_dasgd.errors import WindowError
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, WindowMemory
from hpc_dasgd.window.publication import HEADER_LENGTH, HeaderField, PublicationWindow
from hpc_dasgd.window.slots import PublicationLayout

SIZES = [1, 2, 4, 8]


def finish(transfer):
    while not transfer.done():
        pass


def header_of(window, target, channel=0):
    header = np.zeros(HEADER_LENGTH, np.int64)
    finish(window.read_header(target, channel, header))
    return header


@pytest.fixture(params=[None, True, False], ids=["probed", "requests", "get-and-flush"])
def request_reads(request):
    return request.param


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_rank_reads_the_publications_of_every_rank(comm, request_reads, dtype):
    """Rank `r` has ``r + 1`` channels of three slots each; the last publication has the number 5."""
    layout = PublicationLayout(1000, dtype, n_slots=3, n_channels=comm.rank + 1, n_versions=2)
    window = PublicationWindow(comm, layout, request_reads)
    for number, channel in enumerate(window.channels):
        for publication in range(1, 6):
            slot = channel.begin()
            slot.payload[:] = np.arange(1000) + 10_000 * comm.rank + 1000 * number + publication
            slot.versions[:] = comm.rank, publication
            channel.publish()
        assert channel.published is slot
    comm.Barrier()
    read = window.buffer()
    for target in range(comm.size):
        for number in range(target + 1):
            header = header_of(window, target, number)
            assert header[[HeaderField.PUBLICATION, HeaderField.BEGUN]].tolist() == [5, 5]
            for publication in (3, 4, 5):
                finish(window.read_slot(target, number, publication % 3, read))
                assert read.versions.tolist() == [target, publication]
                expected = np.arange(1000) + 10_000 * target + 1000 * number + publication
                np.testing.assert_array_equal(read.payload, expected)
    comm.Barrier()
    window.free()


@pytest.mark.parallel([2])
def test_the_header_tells_that_a_publication_was_begun(comm):
    window = PublicationWindow(comm, PublicationLayout(10, np.float32, n_slots=2))
    channel, other = window.channels[0], 1 - comm.rank
    for publication in range(3):
        if comm.rank == 0:
            channel.begin().payload[:] = publication
            assert channel.begin() is channel.begin()
        comm.Barrier()
        if comm.rank == 1:
            header = header_of(window, other)
            assert header[HeaderField.PUBLICATION] == publication
            assert header[HeaderField.BEGUN] == publication + 1
        comm.Barrier()
        if comm.rank == 0:
            channel.publish()
    comm.Barrier()
    window.free()


@pytest.mark.parallel([2])
def test_version_vector_and_payload_can_be_read_separately(comm, request_reads):
    window = PublicationWindow(comm, PublicationLayout(100, np.float32, n_slots=2), request_reads)
    slots = window.channels[0].slots
    slots[0].payload[:] = -2
    slots[1].payload[:] = np.arange(100) + comm.rank
    slots[1].versions[0] = 7 + comm.rank
    window.channels[0].publish()
    comm.Barrier()
    other, read = 1 - comm.rank, window.buffer()
    finish(window.read_payload(other, 0, 1, read))
    np.testing.assert_array_equal(read.payload, np.arange(100) + other)
    assert read.versions[0] == 0
    read.payload[:] = -1
    finish(window.read_versions(other, 0, 1, read))
    assert read.versions[0] == 7 + other
    assert np.all(read.payload == -1)
    comm.Barrier()
    window.free()


@pytest.mark.parallel([2])
def test_transfers_above_the_size_limit_are_split(comm, request_reads, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.window.memory.TRANSFER_LIMIT_BYTES", 1000)
    window = PublicationWindow(comm, PublicationLayout(10_001, np.float64, n_slots=2), request_reads)
    window.channels[0].begin().payload[:] = np.arange(10_001) + comm.rank
    window.channels[0].publish()
    comm.Barrier()
    read = window.buffer()
    before = window.transferred_bytes
    finish(window.read_slot(1 - comm.rank, 0, 1, read))
    np.testing.assert_array_equal(read.payload, np.arange(10_001) + 1 - comm.rank)
    assert 80_008 < window.transferred_bytes - before < 80_008 + 200
    comm.Barrier()
    window.free()


@pytest.mark.parallel(SIZES)
@pytest.mark.parametrize("limit_bytes", [1 << 30, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_every_addition_of_every_rank_is_applied_once(comm, dtype, limit_bytes, monkeypatch):
    """All ranks add to the memory of all ranks, their own included; the fetched values never decrease."""
    monkeypatch.setattr("hpc_dasgd.window.memory.TRANSFER_LIMIT_BYTES", limit_bytes)
    size = 3001
    window = WindowMemory(comm, 64 + size * np.dtype(dtype).itemsize)
    values = (np.arange(size) % 7 + comm.rank).astype(dtype)
    fetched, last = np.zeros(size, dtype), np.zeros((comm.size, size), dtype)
    for _ in range(20):
        for target in range(comm.size):
            finish(window.add(target, 64, values, fetched))
            assert np.all(fetched >= last[target])
            last[target] = fetched + values
    comm.Barrier()
    window.fence()
    all_ranks = comm.size * (np.arange(size) % 7) + sum(range(comm.size))
    np.testing.assert_array_equal(window.memory[64:].view(dtype), 20 * all_ranks)
    assert not window.memory[:64].any()
    assert window.transferred_bytes == 2 * 20 * (comm.size - 1) * values.nbytes
    comm.Barrier()
    window.free()


@pytest.mark.parallel(SIZES)
def test_all_payloads_are_aligned_to_64_bytes(comm):
    window = PublicationWindow(comm, PublicationLayout(17, np.float32, n_slots=3, n_channels=2, n_versions=3))
    read = window.buffer()
    slots = [slot for channel in window.channels for slot in channel.slots]
    assert len(slots) == 6
    assert not any(slot.payload.ctypes.data % ALIGNMENT_BYTES for slot in (*slots, read))
    assert all(slot.payload.size == 17 and slot.versions.size == 3 for slot in (*slots, read))
    window.free()


@pytest.mark.parallel([1, 2])
def test_using_a_freed_window_raises_an_error(comm):
    window = PublicationWindow(comm, PublicationLayout(10, np.float32, n_slots=2))
    read = window.buffer()
    window.free()
    window.free()
    with pytest.raises(WindowError, match="freed"):
        window.read_slot(0, 0, 0, read)
    with pytest.raises(WindowError, match="freed"):
        window.fence()


@pytest.mark.parallel([2])
def test_all_ranks_agree_on_whether_reads_use_requests(comm):
    window = PublicationWindow(comm, PublicationLayout(10, np.float32, n_slots=2))
    assert len(set(comm.allgather(window.uses_requests))) == 1
    window.free()
