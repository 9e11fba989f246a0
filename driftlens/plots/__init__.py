"""Draw tables as plotly figures, and write figures to files.

Every analysis draws with this package: one template, one diverging colour scale centred at zero, type of at least 12 px
so that figures can be printed, and exact values on hover. `heatmaps` draws grids of tokens × layers, `curves` lines and
histograms, `tradeoffs` one measure against another, `scatter` correlations, and `tables` tables. `style` is the common
look, and `files` writes figures.
"""

from driftlens.plots.curves import plot_histogram, plot_patch_curve
from driftlens.plots.files import figure_html, figure_png, save_figure
from driftlens.plots.heatmaps import plot_heads, plot_score_grid, plot_trace, plot_traces
from driftlens.plots.scatter import plot_correlation
from driftlens.plots.tables import plot_table
from driftlens.plots.tradeoffs import plot_tradeoffs

__all__ = [
    "figure_html",
    "figure_png",
    "plot_correlation",
    "plot_heads",
    "plot_histogram",
    "plot_patch_curve",
    "plot_score_grid",
    "plot_table",
    "plot_trace",
    "plot_traces",
    "plot_tradeoffs",
    "save_figure",
]
