"""Human evaluation: people compare what two edited models write (paper, E.4: Table 9, Figures 12 and 13).

1. :mod:`~driftlens.human.texts` writes the pairs, :class:`Comparison` hides who wrote what.
2. :func:`comparison_page` is what annotators see, as one file; :mod:`~driftlens.human.server` hands it out in a network.
3. :func:`read_answers` and :func:`judgements` bring their answers back to the systems, and :func:`agreement` says who
   wins how often, and how far annotators agree.
"""

from driftlens.human.comparison import CRITERIA, KEY, Comparison, Systems, TextPair
from driftlens.human.page import comparison_page

__all__ = ["CRITERIA", "KEY", "Comparison", "Systems", "TextPair", "comparison_page"]
