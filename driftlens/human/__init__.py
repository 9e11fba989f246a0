"""Human evaluation: annotators compare texts of two edited models (paper, E.4: Table 9, Figures 12 and 13).

1. :func:`write_pairs` generates the texts; :class:`Comparison` blinds them and adds attention checks.
2. :func:`comparison_page` makes the annotators' page, as one file; :mod:`driftlens.human.server` serves it.
3. :func:`read_answers` reads the answers.  :func:`agreement` computes win rates and inter-annotator agreement, and
   :func:`agreement_figure` and :func:`agreement_latex` show them.
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
