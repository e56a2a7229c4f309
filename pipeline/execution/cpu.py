"""The CPU of this machine: its name, and whether it supports bf16."""

import platform


def processor_name() -> str:
    """The CPU's name from /proc/cpuinfo, or from the platform."""
    return _read_cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; otherwise autocast emulates it and is slower than fp32."""
    info = _read_cpuinfo()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(f"{info.get('flags', '')} {info.get('Features', '')}".split())


def _read_cpuinfo() -> dict[str, str]:
    """First value of each key in /proc/cpuinfo; empty if the file does not exist."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, value in reversed(lines)}
