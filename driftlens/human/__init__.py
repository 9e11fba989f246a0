"""Human evaluation: people compare what two edited models write (paper, E.4: Table 9, Figures 12 and 13).

1. :func:`write_pairs` writes the texts; :class:`Comparison` hides who wrote what and adds attention checks.
2. :func:`comparison_page` is what annotators see, as one file; :mod:`driftlens.human.server` hands it out in a network.
3. :func:`read_answers` reads what they answered, and :func:`agreement` says who wins how often and how far annotators
   agree; :func:`agreement_figure` and :func:`agreement_latex` show it.
"""

from driftlens.human.agreement import Agreement, agreement
from driftlens.human.answers import AnswerSheet, judgements
from driftlens.human.comparison import CRITERIA, KEY, Comparison, Systems, TextPair
from driftlens.human.page import comparison_page
from driftlens.human.reading import read_answers
from driftlens.human.report import agreement_figure, agreement_latex
from driftlens.human.texts import MAX_TOKENS, pairs_of_texts, write_pairs

__all__ = [
    "CRITERIA",
    "KEY",
    "MAX_TOKENS",
    "Agreement",
    "AnswerSheet",
    "Comparison",
    "Systems",
    "TextPair",
    "agreement",
    "agreement_figure",
    "agreement_latex",
    "comparison_page",
    "judgements",
    "pairs_of_texts",
    "read_answers",
    "write_pairs",
]
