"""Where to train and in which precision, and what to call it; memory that is kept."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Literal

import torch

__all__ = [
    *("Precision", "device_name", "keep_freed_memory", "place_name"),
    *("resolve_device", "resolve_precision"),
]

Precision = Literal["float32", "bf16"]


def resolve_device(device: str = "auto") -> torch.device:
    """CUDA where there is one, then MPS, then the CPU; or the one that is named.

    Raises:
        ValueError: a device that is unknown or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()  # the meta device has no values
    except Exception as error:
        raise ValueError(f"device {device!r} cannot be used here: {error}") from None
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """Bf16 for "auto" where the device computes it faster, float32 elsewhere.

    That is on CUDA devices from Ampere on, and on CPUs with AMX or with AVX512-BF16. Intel's cores
    since Sapphire Rapids have both, but a virtual machine may hide AMX, and what they are then left
    with is slower than float32, as ``benchmarks/precision.py`` measures. On other CPUs bf16 is
    emulated, and slower as well.

    Raises:
        ValueError: neither "auto" nor "float32" nor "bf16".
    """
    if precision not in ("auto", "float32", "bf16"):
        raise ValueError(f"precision must be auto, float32 or bf16, got {precision!r}")
    fit: bool | None = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        fit = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto" and device.type == "cpu":
        can = torch.cpu.get_capabilities()
        without_amx = can.get("avx512_fp16") and "Intel" in can.get("cpu_name", "")
        fit = can.get("amx_bf16") or (can.get("avx512_bf16") and not without_amx)
    return "bf16" if fit else "float32"


def place_name(device: str, threads: int) -> str:
    """A device's name and the CPU's threads, in words: both decide how a run rounds."""
    return f"{device}, {threads} thread{'s' * (threads > 1)}"


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed buffers, rather than hand them back and fault them in every step.

    Does nothing elsewhere.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no CDLL(None)
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def device_name(device: torch.device) -> str:
    """The device in words, for the record; of a CPU with the instructions that PyTorch uses, which
    decide how it rounds."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    if device.type == "cpu" and sys.platform.startswith("linux"):
        with open("/proc/cpuinfo") as lines:
            models = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
        name = models[0].strip() if models else name
    if device.type == "cpu" and (used := torch.backends.cpu.get_cpu_capability()) != "DEFAULT":
        name += f", {used}"
    return f"{device.type} ({name})"
