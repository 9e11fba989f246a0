"""Numbers and answers as captions print them."""

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
    """A probability's change in points of a hundred."""
    return f"{100 * value:+.{digits}f} points".replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """A share of one."""
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def relative(value: float) -> str:
    """A relative change."""
    return "–" if math.isnan(value) else f"{100 * value:+,.1f} %".replace("-", "−")


def number(value: float, digits: int = 2) -> str:
    """With a minus as it is printed, and none before zero."""
    return f"{value:z.{digits}f}".replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """In brackets."""
    return f"[{low:z.{digits}f}, {high:z.{digits}f}]".replace("-", "−")


def p_value(p: float) -> str:
    """As the paper writes it, and no more exact than anybody needs."""
    if p < 1e-5:
        return "p < 1e-5"
    return f"p = {p:.1e}" if p < 1e-3 else f"p = {p:.3f}"


def rho(found: Correlation) -> str:
    """ρ with all that is known about it."""
    text = f"ρ = {number(found.rho)} {interval(found.low, found.high)}, {p_value(found.p)}, n = {found.n}"
    if not math.isnan(found.cluster_low):
        text += f"; resampling records {interval(found.cluster_low, found.cluster_high)}"
    return text


def rho_cell(found: Correlation | None) -> str:
    """ρ in a table, with the interval that respects records."""
    if found is None:
        return "–"
    low, high = found.cluster_low, found.cluster_high
    if math.isnan(low):
        low, high = found.low, found.high
    return f"{number(found.rho)} {interval(low, high)}"


def by_share(share: float, *, sure: bool = True) -> Answer:
    """How strongly an effect appears that makes up `share` of what it could; `sure` if its interval leaves out zero."""
    if math.isnan(share):
        return "cannot be told"
    if share < 0.05 or not sure:
        return "no"
    return "yes, strongly" if share >= 0.5 else "yes" if share >= 0.2 else "weakly"


def by_correlation(found: Correlation | None) -> Answer:
    """How strongly a positive correlation appears; the interval that resamples records must leave out zero."""
    if found is None:
        return "cannot be told"
    low = found.low if math.isnan(found.cluster_low) else found.cluster_low
    if found.rho <= 0 or low <= 0 or found.p >= 0.05:
        return "no"
    return "yes, strongly" if found.rho >= 0.5 else "yes" if found.rho >= 0.3 else "weakly"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
