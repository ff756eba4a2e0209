"""Where and in which precision our nodes compute."""

import psutil
import torch
from invokeai.backend.util.devices import TorchDevice


def compute_device() -> torch.device:
    """The device of this session."""
    return TorchDevice.choose_torch_device()


def compute_dtype(device: torch.device | None = None) -> torch.dtype:
    """What our loaders and the model's input use: float32 on the CPU, else what InvokeAI finds safe (bfloat16).

    `device` None: that of this session.
    """
    device = device or compute_device()
    return torch.float32 if device.type == "cpu" else TorchDevice.choose_bfloat16_safe_dtype(device)


def free_bytes(device: torch.device) -> int:
    """Memory that is free for a working set: of the GPU, where there is one, else of the machine."""
    if device.type == "cuda":
        # What torch holds and does not use is as good as free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return int(psutil.virtual_memory().available)


def all_bytes(device: torch.device) -> int:
    """What would be free if InvokeAI moved every other model off the GPU; without one, what is free."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else free_bytes(device)
