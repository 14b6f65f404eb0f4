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
    """Return the device called `name`; "auto" prefers a GPU."""
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
    """Set this process's threads and deterministic kernels, and return the device.

    Of several GPUs it claims one that no other grace-bench process uses (`gpus.py`).
    """
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new tensors only serves to find uses of uninitialised memory, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = resolve_device(compute.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", gpus.claim(torch.cuda.device_count()))
        torch.cuda.set_device(device)
    return device


def autocast(compute: ComputeConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context for forward passes in the configured precision; weights stay float32.

    Autocast's cache is off: one context spans all steps of an edit, and the cache would keep a
    copy of a trained weight from before the first step.
    """
    if compute.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, compute.precision), cache_enabled=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the device or the machine is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()  # the CPU's allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        sign in message for sign in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def free_memory(device: torch.device) -> None:
    """Release the memory that PyTorch caches."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle, so that a clock measures its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
