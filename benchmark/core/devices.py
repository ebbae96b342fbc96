"""Chooses the device that a cohort trains on, makes it deterministic, and describes it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import sys
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn

from benchmark.core.errors import UserError
from benchmark.core.spec import Precision


def resolve_device(name: str) -> torch.device:
    """Get the device of a name; `auto` is CUDA if there is one, else the CPU.

    Raises:
        UserError: the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = re.fullmatch(r"(cpu|cuda)(?::([0-9]{1,4}))?", name)
    if known is None:
        raise UserError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:N")
    kind, number = known.groups()
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' is not available in this installation of torch; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} does not exist: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def make_deterministic(device: torch.device, threads: int) -> None:
    """Fix what could change a run's bits on this device: threads, choice of algorithms, reduced precision."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True)


def supports_bf16(device: torch.device) -> bool:
    """Whether the device has hardware for bf16 (without it, bf16 is slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Make the context in which forwards and losses are computed.

    It overrides an outer one: a teacher in fp32 stays in fp32 when a student in bf16 is the first to call it.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


ModuleType = TypeVar("ModuleType", bound=nn.Module)


def placed(module: ModuleType, device: torch.device) -> ModuleType:
    """Move a module to the device, with channels_last layout, which is faster for all networks of the suite."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def device_name(device: torch.device) -> str:
    """Get the model name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Get the most memory that this process has held on the device so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def cpu_count() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
