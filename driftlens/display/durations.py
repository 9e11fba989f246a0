"""Format durations for reading."""

from __future__ import annotations

import math

__all__ = ["duration", "measured_duration"]


def duration(seconds: float) -> str:
    """Format an estimate in seconds in the two largest units: "3 h 20 min", "5 min", "40 s"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def measured_duration(seconds: float) -> str:
    """Format a measurement in seconds to a tenth of a unit: "12.3 ms", "3.4 s", "5.0 min", "2.1 h"."""
    for unit, size, below in (("ms", 1e-3, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, math.inf)):
        if seconds < below:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds} s"
