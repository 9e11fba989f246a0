"""The second moments of a command's editor.

1. :func:`choose_corpus` chooses the texts.
2. :func:`with_second_moments` computes the second moments, or reads them from the cache, and passes them to the editor,
   which then downloads nothing by itself.
3. :func:`cost_text` estimates beforehand how long that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from driftlens.data import Record, true_texts
from driftlens.display.durations import duration
from driftlens.errors import DriftlensError
from driftlens.options.editing import layers_text
from driftlens.progress import OnDone
from driftlens.registry import EDITORS

if TYPE_CHECKING:
    from driftlens.display.terminal import Terminal
    from driftlens.editors import Corpus
    from driftlens.editors.base import Editor
    from driftlens.editors.moment_cost import MomentCost
    from driftlens.models import LensModel
    from driftlens.options.editor import EditorOptions

__all__ = ["choose_corpus", "cost_text", "told_corpus", "with_second_moments"]

_WORTH_A_LINE = 15.0
"""Second moments that take longer than this many seconds are announced beforehand."""
_FEWEST = 200
"""Numbers of texts up to this one are never called too many."""


def choose_corpus(
    model: str, corpus: str | None, records: Sequence[Record], *, given: str | None = None, editor: str = "rome"
) -> Corpus | None:
    """Choose the texts of the second moments for the named model.

    None means the editor's own default, or that no texts are needed: the editor has no second moments, or a file with
    them is ``given``. For a local model, the texts are the true statements of ``records``, so that nothing is
    downloaded unless the user asks for it.

    Raises:
        DriftlensError: an unknown model or corpus; a corpus for an editor without second moments; a local model with
            neither a corpus nor records.
    """
    from driftlens.editors import open_corpus
    from driftlens.models.names import resolve

    local = resolve(model)[1]  # also tells a mistyped model
    if not any(item.name == "corpus" and item.init for item in fields(EDITORS.find(editor))):
        if corpus is not None:
            raise DriftlensError(f"--corpus is no setting of {editor}; leave it out")
        return None
    if corpus is not None:
        return open_corpus(corpus)
    if given is not None or model == "demo" or not local:
        return None
    if not records:
        raise DriftlensError(
            f"{model} is a local model and nothing says which texts it knows; name some for the second moment: "
            "--corpus with a text file or wikitext, or --data with a data set"
        )
    return open_corpus(true_texts(records))


def told_corpus(model: str, options: EditorOptions, records: Sequence[Record], errors: Terminal) -> Corpus | None:
    """:func:`choose_corpus` for a command's options; prints a line if the choice follows from the data."""
    corpus = choose_corpus(model, options.corpus, records, given=options.second_moment, editor=options.editor)
    if corpus is not None and options.corpus is None:
        count = len(true_texts(records))
        errors.print(f"no --corpus: the second moment is taken over the {count:,} true statements of the data")
    return corpus


def with_second_moments(
    model: LensModel,
    editor: Editor,
    corpus: Corpus | None = None,
    *,
    on_cost: Callable[[MomentCost], None] | None = None,
    on_texts: OnDone | None = None,
) -> Editor:
    """The editor with the second moments of its layers, read from the cache or computed over ``corpus``.

    ``on_cost`` is called with the expected cost before they are computed; ``on_texts`` is called with the number of
    finished texts and the greatest possible number.
    """
    from driftlens import editors
    from driftlens.editors import default_corpus, open_corpus
    from driftlens.editors.moment_cost import moment_cost
    from driftlens.editors.second_moment import are_cached

    layers = editor.missing_second_moments
    if not layers:
        return editor
    corpus = corpus or open_corpus(default_corpus(model))
    if on_cost is not None and not are_cached(model, layers, corpus, samples=editor.moment_samples):
        on_cost(moment_cost(model, layers, corpus, editor.moment_samples))
    moments = editors.second_moments(model, layers, corpus, samples=editor.moment_samples, on_texts=on_texts)
    return editor.with_second_moments(moments)


def cost_text(editor: Editor, cost: MomentCost) -> str:
    """A line with the cost of the second moments and how to reduce it; empty if they are quick."""
    if cost.seconds < _WORTH_A_LINE:
        return ""
    text = (
        f"the second moment of {layers_text(editor.edited_layers)} takes about {duration(cost.seconds)}: "
        f"{cost.texts:,} texts, once, then cached"
    )
    fewer = max(_FEWEST, int(round(cost.texts / 10, 1 - len(str(cost.texts // 10)))))
    return f"{text}; --samples {fewer} takes about {duration(cost.of(fewer))}" if fewer < cost.texts / 2 else text
