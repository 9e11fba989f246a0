"""Editors: turn a fact into an :class:`~driftlens.edits.Edit`.

Each method has its own file; they share a value optimiser.
"""

from driftlens.editors.alphaedit import AlphaEdit
from driftlens.editors.base import Editor
from driftlens.editors.contexts import ContextSampling, sample_contexts
from driftlens.editors.corpora import Corpus, open_corpus
from driftlens.editors.failures import EditError, Failure
from driftlens.editors.guarded import GuardedSADR
from driftlens.editors.memit import MEMIT
from driftlens.editors.mend import MEND
from driftlens.editors.mend_files import TrainedMEND
from driftlens.editors.mend_settings import MENDTraining
from driftlens.editors.mend_training import train_mend
from driftlens.editors.pmet import PMET
from driftlens.editors.presets import sadr_gamma
from driftlens.editors.regularizers import LastTokenAttention, Observed, Regularizer, Seen, Wants
from driftlens.editors.rome import ROME
from driftlens.editors.sadr import SADR, last_token_kl
from driftlens.editors.second_moment import SecondMoment, second_moments, stream_second_moments
from driftlens.editors.sequence import edit_in_sequence, edit_together
from driftlens.editors.shipped import default_corpus
from driftlens.editors.side_objective import WISEConventions
from driftlens.editors.value_editor import ValueEditor
from driftlens.editors.wise import WISE
from driftlens.registry import register_editor, register_regularizer

__all__ = [
    "MEMIT",
    "MEND",
    "PMET",
    "ROME",
    "SADR",
    "WISE",
    "AlphaEdit",
    "ContextSampling",
    "Corpus",
    "EditError",
    "Editor",
    "Failure",
    "GuardedSADR",
    "LastTokenAttention",
    "MENDTraining",
    "Observed",
    "Regularizer",
    "SecondMoment",
    "Seen",
    "TrainedMEND",
    "ValueEditor",
    "WISEConventions",
    "Wants",
    "default_corpus",
    "edit_in_sequence",
    "edit_together",
    "last_token_kl",
    "open_corpus",
    "register_editor",
    "register_regularizer",
    "sadr_gamma",
    "sample_contexts",
    "second_moments",
    "stream_second_moments",
    "train_mend",
]
