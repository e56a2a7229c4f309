"""What every kind of embedder does with its vectors, and with the machine it runs on.

Shapes: N texts, D width of the embedding.
"""

import platform

import numpy as np
from numpy.typing import NDArray


def unit_rows(x_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, D) rows of length 1; a row that is zero or not finite becomes all NaN, so that nobody mistakes it for a direction."""
    x_ND = np.asarray(x_ND, dtype=np.float32)
    norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    usable_N1 = np.isfinite(norm_N1) & (norm_N1 > 0)
    unit_ND: NDArray[np.float32] = np.divide(x_ND, norm_N1, out=np.full_like(x_ND, np.nan), where=usable_N1)
    return unit_ND


def processor_name() -> str:
    """The CPU's name, as /proc/cpuinfo or the platform has it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself; where it does not, autocast emulates it and is slower than fp32."""
    flags = _cpuinfo()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(f"{flags.get('flags', '')} {flags.get('Features', '')}".split())


def _cpuinfo() -> dict[str, str]:
    """First value of each line of /proc/cpuinfo; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, value in reversed(lines)}
