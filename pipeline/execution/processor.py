"""The processor of this machine: its name, and whether it multiplies bf16."""

import platform


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
