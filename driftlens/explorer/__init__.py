"""The explorer: what an edit does to one prompt, by record, task, module, window, target and γ.

1. `readings`: both models on a prompt, and contaminating substitution with the likeliest next tokens read along.
2. `bench`: edits, readings and grids by what was chosen, made when they are first asked for, then kept.
3. `page`: all of it in one HTML file that needs no Python and no network (`driftlens trace --explore`).
4. `notebook`: the same in Jupyter, computed as one goes along: `driftlens.explore(model, record)`.
"""

from driftlens.explorer.bench import Bench, Exhibit, default_windows, exhibits
from driftlens.explorer.page import explorer_page

__all__ = ["Bench", "Exhibit", "default_windows", "exhibits", "explorer_page"]
