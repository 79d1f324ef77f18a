"""Slots: a version vector and a payload, as they are published and read, and the sizes of the memory they are in."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hpc_dasgd.arrays.types import Array, Bytes, DType, Int64s
from hpc_dasgd.window.memory import ALIGNMENT_BYTES, aligned


@dataclass(frozen=True)
class PublicationLayout:
    """Sizes of the memory in which a rank publishes.

    Attributes
    ----------
    n_params : int
        Number of elements of a payload.
    dtype : dtype_like
        Data type of a payload, float32 or float64.
    n_slots : int
        Number of publications of a channel that exist at the same time: at least 2 if slots are read.
    n_channels : int
        Number of channels of this rank, which may differ between ranks. All other sizes are the same on all ranks.
    n_versions : int
        Number of entries of the version vector of each slot.
    """

    n_params: int
    dtype: DType
    n_slots: int
    n_channels: int = 1
    n_versions: int = 1

    @property
    def payload_offset_bytes(self) -> int:
        """Number of bytes from the start of a slot to its payload."""
        return aligned(self.n_versions * 8)

    @property
    def payload_bytes(self) -> int:
        """Size of a payload in bytes."""
        return self.n_params * np.dtype(self.dtype).itemsize

    @property
    def slot_bytes(self) -> int:
        """Size of a slot in bytes, a multiple of the alignment."""
        return aligned(self.payload_offset_bytes + self.payload_bytes)

    @property
    def channel_bytes(self) -> int:
        """Size of a channel in bytes: its header and its slots."""
        return ALIGNMENT_BYTES + self.n_slots * self.slot_bytes


class Slot(Protocol):
    """A version vector and a payload: one publication, or the buffer into which one is read.

    Attributes
    ----------
    versions : ndarray, shape (n_versions,), int64, host memory
    payload : array, shape (n_params,), float32 or float64
    """

    versions: Int64s
    payload: Array


class ContiguousSlot:
    """A version vector and a payload in one piece of host memory, so that one transfer reads both.

    Parameters
    ----------
    memory : ndarray, shape (layout.slot_bytes,), uint8
    layout : PublicationLayout

    Attributes
    ----------
    memory : ndarray, shape (layout.slot_bytes,), uint8
        The memory of the slot; the other attributes are views of it.
    versions : ndarray, shape (n_versions,), int64
    payload : ndarray, shape (n_params,), float32 or float64
    """

    def __init__(self, memory: Bytes, layout: PublicationLayout):
        offset = layout.payload_offset_bytes
        self.memory = memory
        self.versions: Int64s = memory[: layout.n_versions * 8].view(np.int64)
        self.payload: Array = memory[offset : offset + layout.payload_bytes].view(layout.dtype)


class SplitSlot:
    """A version vector in host memory and a payload in other memory, which two transfers read.

    Attributes
    ----------
    versions : ndarray, shape (n_versions,), int64
    payload : array, shape (n_params,), float32 or float64, memory of a device
    """

    def __init__(self, versions: Int64s, payload: Array):
        self.versions, self.payload = versions, payload
