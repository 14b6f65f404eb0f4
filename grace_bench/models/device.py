"""Device, precision and threads of a run, in one place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from grace_bench.errors import ConfigError
from grace_bench.jobs import gpus

if TYPE_CHECKING:
    from grace_bench.suite.schema import ComputeConfig


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes a GPU where there is one."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"compute.device: '{name}' is not on this machine; use auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("compute.device: 'mps' is not on this machine; use auto or cpu.")
    return device


def set_up(compute: ComputeConfig) -> torch.device:
    """Fix threads and deterministic kernels for this process and return the device.

    Of several GPUs it is one that no other process of ours has (`gpus.py`).
    """
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor is for finding reads of uninitialised memory, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = resolve_device(compute.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", gpus.claim(torch.cuda.device_count()))
        torch.cuda.set_device(device)
    return device


def autocast(compute: ComputeConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context of forward passes in the wanted precision; weights stay float32.

    Autocast's cache is off: one context spans all steps of an edit, and the cache would go on
    giving the copy of a trained weight that was made before the first step.
    """
    if compute.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, compute.precision), cache_enabled=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that device or machine have no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()  # the CPU's allocator and some kernels raise a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        sign in told for sign in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def free_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of freed tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until the device is done, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
