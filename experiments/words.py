"""Format numbers and answers for captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driftlens.statistics.correlations import Correlation
from experiments.artifacts import Answer

__all__ = [
    "by_correlation",
    "by_share",
    "interval",
    "listed",
    "number",
    "p_value",
    "percent",
    "points",
    "relative",
    "rho",
    "rho_cell",
]


def points(value: float, digits: int = 1) -> str:
    """Format a change of probability in percentage points."""
    return f"{100 * value:+.{digits}f} points".replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """Format a share in percent."""
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def relative(value: float) -> str:
    """Format a relative change."""
    return "–" if math.isnan(value) else f"{100 * value:+,.1f} %".replace("-", "−")


def number(value: float, digits: int = 2) -> str:
    """Format a number with a typographic minus, and no minus before zero."""
    return f"{value:z.{digits}f}".replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """Format an interval in brackets."""
    return f"[{low:z.{digits}f}, {high:z.{digits}f}]".replace("-", "−")


def p_value(p: float) -> str:
    """Format a p-value as the paper does, with limited precision."""
    if p < 1e-5:
        return "p < 1e-5"
    return f"p = {p:.1e}" if p < 1e-3 else f"p = {p:.3f}"


def rho(found: Correlation) -> str:
    """Format ρ with its interval and p-value."""
    text = f"ρ = {number(found.rho)} {interval(found.low, found.high)}, {p_value(found.p)}, n = {found.n}"
    if not math.isnan(found.cluster_low):
        text += f"; resampling records {interval(found.cluster_low, found.cluster_high)}"
    return text


def rho_cell(found: Correlation | None) -> str:
    """Format ρ for a table, with the bootstrap interval over records."""
    if found is None:
        return "–"
    low, high = found.cluster_low, found.cluster_high
    if math.isnan(low):
        low, high = found.low, found.high
    return f"{number(found.rho)} {interval(low, high)}"


def by_share(share: float, *, sure: bool = True) -> Answer:
    """Say how strongly an effect with this `share` of the possible appears; `sure` if its interval excludes zero."""
    if math.isnan(share):
        return "cannot be told"
    if share < 0.05 or not sure:
        return "no"
    return "yes, strongly" if share >= 0.5 else "yes" if share >= 0.2 else "weakly"


def by_correlation(found: Correlation | None) -> Answer:
    """Say how strongly a positive correlation appears; the bootstrap interval over records must exclude zero."""
    if found is None:
        return "cannot be told"
    low = found.low if math.isnan(found.cluster_low) else found.cluster_low
    if found.rho <= 0 or low <= 0 or found.p >= 0.05:
        return "no"
    return "yes, strongly" if found.rho >= 0.5 else "yes" if found.rho >= 0.3 else "weakly"


def listed(parts: Sequence[str]) -> str:
    """Format a list: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
