"""Device memory that all ranks of one host address, each through its own GPU.

PyTorch shares tensors between processes too, but counts their users in a file that stays behind
when a process is killed, which is how ranks end. So this calls the CUDA driver itself.
"""

from __future__ import annotations

import ctypes
import logging
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

_NATIVE_ATOMICS = 3  # CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED: NVLink has them, PCIe not
_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class _Handle(ctypes.Structure):
    """CUipcMemHandle: what another process opens the memory with."""

    _fields_ = [("reserved", ctypes.c_char * 64)]


class _UnreachableError(Exception):
    """Why this rank cannot share memory with the others."""


class PeerMemory:
    """`addresses[r]` is where rank r's part is in this process. Its own part is freed, and those of
    the others are let go, when this is garbage; by then no rank may use them."""

    def __init__(self, device: torch.device, rank: int, addresses: tuple[int, ...]) -> None:
        self.addresses = addresses
        self._release = weakref.finalize(self, _release, device, rank, addresses)
        self._release.atexit = False  # the end of the process frees it

    @classmethod
    def share(
        cls, nbytes: int, rank: int, size: int, device: torch.device, store: Store
    ) -> PeerMemory | None:
        """`nbytes` for each rank, all zero. To be called by all ranks at once; `store` is theirs,
        `device` has an index.

        None, on every rank, if any of them cannot address another's memory with atomics; the log
        says why.
        """
        addresses = [0] * size
        problem = None
        offer: tuple[int, bytes] | None = None
        try:
            addresses[rank], handle = _allocate(nbytes, device)
            offer = (device.index, handle)
        except _UnreachableError as error:
            problem = str(error)
        offers = _exchange(store, "offer", rank, size, offer)
        if problem is None:
            try:
                for peer, theirs in enumerate(offers):
                    if peer != rank:
                        addresses[peer] = _open(device, peer, theirs)
            except _UnreachableError as error:
                problem = str(error)
        memory = cls(device, rank, tuple(addresses))
        problems = [text for text in _exchange(store, "problem", rank, size, problem) if text]
        if problems and rank == 0:
            logger.warning("GPUs exchange small sums through NCCL too: %s", "; ".join(problems))
        return None if problems else memory


def _exchange(store: Store, what: str, rank: int, size: int, value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    store.set(f"peer-memory/{what}/{rank}", pickle.dumps(value))  # type: ignore[arg-type]
    return [pickle.loads(store.get(f"peer-memory/{what}/{peer}")) for peer in range(size)]


def _allocate(nbytes: int, device: torch.device) -> tuple[int, bytes]:
    """Address and handle of new memory, an allocation of its own: a handle opens all of one."""
    address, handle = ctypes.c_uint64(), _Handle()
    with _idle(device):
        _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        _call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(nbytes))
        torch.cuda.synchronize()
        _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    return address.value, bytes(handle)


def _open(device: torch.device, peer: int, offer: tuple[int, bytes] | None) -> int:
    """The address of a peer's memory in this process."""
    if offer is None:
        raise _UnreachableError(f"rank {peer} has no memory to share")
    their_index, handle = offer
    if not _reaches(device.index, their_index):
        raise _UnreachableError(f"no link with atomics (NVLink) to GPU {their_index}, rank {peer}")
    address = ctypes.c_uint64()
    with _idle(device):
        _call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(address),
            _Handle.from_buffer_copy(handle),
            ctypes.c_uint(_ENABLE_PEER_ACCESS),
        )
    return address.value


def _reaches(index: int, peer: int) -> bool:
    if index == peer:
        return True
    if not torch.cuda.can_device_access_peer(index, peer):
        return False
    atomics = ctypes.c_int()
    _call("cuDeviceGetP2PAttribute", ctypes.byref(atomics), _NATIVE_ATOMICS, index, peer)
    return bool(atomics.value)


def _release(device: torch.device, rank: int, addresses: tuple[int, ...]) -> None:
    # What fails here does so because the context is broken, and that takes its memory along.
    with suppress(RuntimeError, _UnreachableError), _idle(device):
        for owner, address in enumerate(addresses):
            if address != 0:
                name = "cuMemFree_v2" if owner == rank else "cuIpcCloseMemHandle"
                _call(name, ctypes.c_uint64(address))


@contextmanager
def _idle(device: torch.device) -> Iterator[None]:
    """All work on the device is done, and its context is this thread's, as the driver wants."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        yield


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise _UnreachableError(f"the CUDA driver cannot be called: {error}") from error


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status != 0:
        word = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(word))
        reason = word.value.decode() if word.value else str(status)
        raise _UnreachableError(f"{name} answers {reason}")
