"""Format amounts for people: shares, numbers, durations, rates, bytes."""

import math

_HOUR = 3600.0


def format_percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f}%"


def format_number(value: float) -> str:
    """Three significant digits; all integer digits from 1,000 on."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) < 1e-9:  # rounding error of sums that cancel
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR:,.1f} h" if seconds < 48 * _HOUR else f"{seconds / 24 / _HOUR:,.1f} days"


def format_rate(per_s: float) -> str:
    """Per second, or per minute or hour if it is less than one."""
    if per_s <= 0:
        return "0/h"
    rate, unit = next(
        ((per_s * times, unit) for times, unit in ((1, "s"), (60, "min")) if per_s * times >= 1), (per_s * _HOUR, "h")
    )
    return f"{rate:.1f}/{unit}" if rate < 9.95 else f"{rate:,.0f}/{unit}"


def format_bytes(num: float) -> str:
    """Bytes with a decimal prefix, to three significant digits."""
    units = ["B", "KB", "MB", "GB", "TB"]
    while num >= 999.5 and len(units) > 1:
        num, units = num / 1000, units[1:]
    return f"{num:,.3g} {units[0]}"
