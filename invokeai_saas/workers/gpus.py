"""The machine's NVIDIA cards through the driver's own library (NVML): no torch, and nothing of the cards' memory is taken.

Numbers are those of `nvidia-smi`, and CUDA's within CUDA_VISIBLE_DEVICES: "cuda:0" is the first visible one.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: `visible` is what CUDA_VISIBLE_DEVICES must say so that a process sees this one only."""

    device: str
    visible: str
    name: str
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a card does now; `utilization` is 0 to 1."""

    used_memory_mb: int
    utilization: float


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def all_gpus() -> list[Gpu]:
    """The visible cards, in CUDA's order as PCI_BUS_ID says it; none where there is no driver."""
    library = _library()
    if library is None:
        return []
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    return [gpu for number, visible in enumerate(_visible(count.value)) if (gpu := _gpu(library, f"cuda:{number}", visible)) is not None]


def load_of(gpu: Gpu) -> Load | None:
    """What the card does now; None when the driver does not say."""
    library = _library()
    handle = None if library is None else _handle(library, gpu.visible)
    if library is None or handle is None:
        return None
    memory, used = _Memory(), _Utilization()
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(used)) != 0:
        return Load(memory.used >> 20, 0.0)
    return Load(memory.used >> 20, used.gpu / 100)


def _visible(count: int) -> Sequence[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    names: list[str] = []
    for name in (word.strip() for word in given.split(",")):
        # CUDA ends the list at the first one that is not there.
        if not name or name == "-1" or (name.isdigit() and int(name) >= count):
            break
        names.append(name)
    return names


def _gpu(library: ctypes.CDLL, device: str, visible: str) -> Gpu | None:
    handle, name, memory = _handle(library, visible), ctypes.create_string_buffer(96), _Memory()
    if handle is None or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    library.nvmlDeviceGetName(handle, name, 96)
    return Gpu(device, visible, name.value.decode(errors="replace"), memory.total >> 20)


def _handle(library: ctypes.CDLL, visible: str) -> ctypes.c_void_p | None:
    handle = ctypes.c_void_p()
    if visible.isdigit():
        found = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(visible)), ctypes.byref(handle))
    else:
        found = library.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(handle))
    return handle if found == 0 else None
