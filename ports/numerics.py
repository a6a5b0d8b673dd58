"""Where numbers are computed and how: the device, the one place that sets seeds and precision, and its record."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
import torch
from accelerate.utils import set_seed


def fix_numerics(seed: int | None = None) -> None:
    """Whole float32 in float32 products: no TF32, which an environment variable or a launcher may have turned on.

    With ``seed``, python, numpy and torch are seeded too.
    """
    torch.set_float32_matmul_precision("highest")
    if seed is not None:
        set_seed(seed)


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def free_memory(device: torch.device) -> int | None:
    """Bytes that nobody holds on the device; of a CPU its machine's; None where torch cannot tell."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def least_free_memory() -> int | None:
    """Bytes that nobody holds on the fullest of the accelerators; None where torch cannot tell."""
    kind, count = best_device().type, torch.accelerator.device_count()
    free = [free_memory(torch.device(kind, index)) for index in range(count)]
    return min((each for each in free if each is not None), default=None)


def has_bf16_units(device: torch.device) -> bool:
    """Does the device multiply in bfloat16 faster than in float32? False where torch cannot tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def wide_dtype(device: torch.device) -> torch.dtype:
    """What sums over many batches are kept in: float64, which Apple's devices do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def numerics() -> dict[str, str | int | bool]:
    """The modes of this process that numbers depend on, as every result holds them."""
    return {
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
