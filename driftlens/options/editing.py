"""The editor of a command: its options, and the editor that they make.

1. :func:`add_editor_options` declares the options; a command's own options extend :class:`EditorOptions`.
2. What can be wrong without a model is told when the options are made, the rest by :func:`make_editor`: the model's
   preset with what the options change.
3. :func:`choose_corpus` says over which texts the second moments are taken, :func:`with_second_moments` takes them
   (from the cache where they are there) and gives them to the editor, so that nothing is streamed unasked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from driftlens.data import Record, true_texts
from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.parsing import Group, context_lengths, layer_list, name_of, number, seed_number, whole_number
from driftlens.registry import EDITORS, REGULARIZERS

if TYPE_CHECKING:
    from driftlens.editors import Corpus
    from driftlens.editors.base import Editor
    from driftlens.editors.moment_cost import MomentCost
    from driftlens.models import LensModel

__all__ = [
    "EditorOptions",
    "add_editor_options",
    "add_sadr_options",
    "applicable",
    "choose_corpus",
    "cost_text",
    "duration",
    "editor_text",
    "layers_text",
    "make_editor",
    "with_second_moments",
]

HEADS = ("selected", "all")

_WORTH_A_LINE = 15.0
"""Seconds of second moments that are worth a line beforehand."""
_FEWEST = 200
"""Texts that are never said to be too many."""

# Option -> setting of the editors.
_SETTINGS = {
    "steps": "steps",
    "lr": "lr",
    "clamp": "clamp_norm_factor",
    "weight_decay": "weight_decay",
    "kl": "kl_factor",
    "second_moment_weight": "second_moment_weight",
    "samples": "samples",
}


# What is called otherwise on the command line, since it may be given more than once.
_OPTIONS = {"regularizers": "regularizer", "hypernetworks": "hypernetwork"}


@dataclass(frozen=True, kw_only=True)
class EditorOptions:
    """What the command line says about the editor; None where it says nothing and the model's preset decides.

    Raises:
        DriftlensError: ROME with several layers or with a second moment's weight.
    """

    editor: str = "rome"
    sadr: bool = False
    gamma: float | None = None
    regularizers: tuple[str, ...] = ()
    sadr_heads: str | None = None
    layers: tuple[int, ...] | None = None
    steps: int | None = None
    lr: float | None = None
    clamp: float | None = None
    weight_decay: float | None = None
    kl: float | None = None
    second_moment_weight: float | None = None
    second_moment: str | None = None
    contexts: tuple[tuple[int, int], ...] | None = None
    corpus: str | None = None
    samples: int | None = None
    hypernetworks: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        # Who says how strongly to restrain, or what, wants it restrained.
        if self.gamma is not None or self.sadr_heads is not None:
            object.__setattr__(self, "sadr", True)
        if self.editor == "none":
            self._check_nothing_to_edit()
        if self.second_moment is not None and self.corpus is not None:
            raise DriftlensError("--second-moment is already taken over a corpus; leave --corpus out, or take it anew")
        if self.editor == "rome" and self.layers is not None and len(self.layers) > 1:
            raise DriftlensError(
                f"--layers names {len(self.layers)} layers, but ROME edits one; give one, or --editor memit or pmet"
            )
        if self.editor == "alphaedit" and self.second_moment_weight is not None:
            raise DriftlensError(
                "--second-moment-weight is MEMIT's and PMET's; leave it out with AlphaEdit, which writes "
                "where the second moment is small"
            )
        if self.editor == "rome" and self.second_moment_weight is not None:
            raise DriftlensError(
                "--second-moment-weight is MEMIT's and PMET's; leave it out with ROME, where the second moment's scale "
                "does not matter"
            )

    def _check_nothing_to_edit(self) -> None:
        names = ("sadr", "regularizers", "layers", "contexts", "corpus", "second_moment", "hypernetworks", *_SETTINGS)
        given = [_OPTIONS.get(name, name) for name in names if getattr(self, name) not in (None, False, ())]
        given = [f"--{name.replace('_', '-')}" for name in given]
        if given:
            raise DriftlensError(f"--editor none edits nothing; leave {', '.join(given)} out, or choose an editor")


OptionsT = TypeVar("OptionsT", bound=EditorOptions)


def add_sadr_options(group: Group, when: str) -> None:
    """Declare `--sadr`, `--gamma` and `--sadr-heads`; `when` is when attention drift is restrained."""
    group.add_argument("--sadr", action="store_true", help=f"restrain attention drift {when}")
    group.add_argument("--gamma", type=number(least=0), metavar="G", help="SADR's weight; implies --sadr")
    group.add_argument(
        "--sadr-heads",
        "--heads",
        type=name_of("choice of heads", HEADS),
        metavar="H",
        help="selected (default) or all (the paper's ablation) heads are restrained; implies --sadr",
    )


def add_editor_options(
    parser: argparse.ArgumentParser, *, seed: str = "of the editor's context prefixes", none: bool = False
) -> None:
    """Declare the options of :class:`EditorOptions`; ``seed`` says what the seed is of, ``none`` allows no editor."""
    known = EDITORS.names
    group = parser.add_argument_group("editor; what is not given comes from the presets for the model")
    group.add_argument(
        "--editor",
        default="rome",
        type=name_of("editor", ("none", *known) if none else known),
        metavar="E",
        help=f"{', '.join(known[:-1])} or {known[-1]} (default rome)" + ("; none: the model as it is" if none else ""),
    )
    add_sadr_options(group, "while editing")
    group.add_argument(
        "--regularizer",
        dest="regularizers",
        action=_Further,
        type=regularizer_text,
        default=(),
        metavar="NAME[:SETTING=VALUE,...]",
        help="a further term of the objective, such as sadr:gamma=0.01,heads=all or one of your own; may be repeated",
    )
    group.add_argument(
        "--layers",
        "--layer",
        dest="layers",
        type=layer_list,
        metavar="L",
        help="layer to edit; with memit, pmet and alphaedit several, such as 3-8 or 3,4,5",
    )
    group.add_argument("--steps", type=whole_number(1), metavar="N", help="optimisation steps")
    group.add_argument("--lr", type=number(above=0), metavar="X", help="learning rate")
    group.add_argument("--clamp", type=number(above=0), metavar="X", help="the value's change at most, in norms of it")
    group.add_argument("--weight-decay", type=number(least=0), metavar="X", help="weight decay of the value's change")
    group.add_argument("--kl", type=number(least=0), metavar="X", help="weight of the essence KL")
    group.add_argument(
        "--second-moment-weight", type=number(above=0), metavar="X", help="λ of memit and pmet: the larger, the less"
    )
    group.add_argument(
        "--second-moment",
        metavar="FILE",
        help="the edited layer's second moment from a file: .npz of ROME or EasyEdit, or driftlens's .safetensors; "
        "{} in the name stands for the layer's number; default: taken over --corpus",
    )
    group.add_argument(
        "--contexts",
        type=context_lengths,
        metavar="LxN",
        help="context prefixes: N of L tokens, such as 10x5 or 5x10,10x10; the fewer, the quicker",
    )
    group.add_argument(
        "--corpus",
        metavar="C",
        help="texts for the second moments: demo, wikipedia, wikitext or a text file; default: the bundled model's "
        "own, the true statements of --data for a local model, else wikipedia",
    )
    group.add_argument("--samples", type=whole_number(1), metavar="N", help="how many of these texts at most")
    group.add_argument(
        "--hypernetwork",
        dest="hypernetworks",
        action=_Further,
        default=(),
        metavar="FILE",
        help="mend's, as driftlens train-mend wrote it; may be repeated, since one with SADR is another one; default: "
        "the bundled model's own, or one in the cache folder",
    )
    group.add_argument("--seed", type=seed_number, default=0, metavar="N", help=f"{seed} (default 0)")


def check_layers(options: EditorOptions, model: str) -> None:
    """Whether the model of that name has the layers that the options name: its configuration is read, no weight.

    Raises:
        DriftlensError: it has not, or no attention is above them for SADR to restrain.
    """
    if options.layers is None:
        return
    from driftlens.models.loading import depth

    last, n_layers = options.layers[-1], depth(model)
    if last >= n_layers:
        raise DriftlensError(
            f"layer {last} is out of range; {model} has layers 0 to {n_layers - 1}, choose of these with --layers"
        )
    _check_room(options, last, n_layers, model)


def _check_room(options: EditorOptions, last: int, n_layers: int, model: str) -> None:
    if options.sadr and last == n_layers - 1:
        raise DriftlensError(
            f"layer {last} is the last of {model}: no attention lies above the edit for SADR to "
            "restrain; edit lower layers, or leave --sadr and --gamma out"
        )


def make_editor(model: LensModel, options: EditorOptions) -> Editor:
    """The preset of the editor for ``model``, changed by what ``options`` say; its second moments are not taken yet.

    Raises:
        DriftlensError: a layer that the model does not have, or no attention above the edit for SADR to restrain.
    """
    from driftlens.editors import SADR
    from driftlens.editors.moment_files import read_moments

    kind: type[Editor] = EDITORS.find(options.editor)
    known = {item.name for item in fields(kind) if item.init}
    changes: dict[str, Any] = {}
    for option, setting in _SETTINGS.items():
        value = getattr(options, option)
        if value is not None:
            if setting not in known:
                raise DriftlensError(f"--{option.replace('_', '-')} is no setting of {options.editor}; leave it out")
            changes[setting] = value
    if options.hypernetworks:
        if "hypernetwork" not in known:
            raise DriftlensError(f"--hypernetwork is mend's; leave it out with {options.editor}")
        changes["files"] = options.hypernetworks
    regularizers = [made_regularizer(text) for text in options.regularizers]
    if options.sadr:
        gamma = kind.usual_gamma(model, **changes) if options.gamma is None else options.gamma
        regularizers.insert(0, SADR(gamma=gamma, heads=options.sadr_heads or "selected"))  # pyright: ignore[reportArgumentType]
    if regularizers:
        changes["regularizers"] = tuple(regularizers)
    if options.layers is not None:
        changes |= _layers(options.editor, options.layers, known)
    if options.contexts is not None and "sampling" not in known:
        raise DriftlensError(f"--contexts is no setting of {options.editor}; leave it out")
    editor = kind.for_model(model, **changes)
    _check_room(options, editor.restrained_above, model.n_layers, model.name)
    if options.second_moment is not None:
        layers = editor.missing_second_moments
        if not layers:
            raise DriftlensError(f"{options.editor} needs no second moment; leave --second-moment out")
        editor = editor.with_second_moments(read_moments(options.second_moment, model, layers))
    if "sampling" not in known:
        return editor
    lengths = options.contexts or editor.sampling.lengths
    return replace(editor, sampling=replace(editor.sampling, lengths=lengths, seed=options.seed))


def applicable(options: OptionsT) -> OptionsT:
    """The options without settings that their editor does not have: for tables over several editors."""
    known = {item.name for item in fields(EDITORS.find(options.editor)) if item.init}
    gone: dict[str, Any] = {option: None for option, setting in _SETTINGS.items() if setting not in known}
    gone |= {} if "sampling" in known else {"contexts": None}
    gone |= {} if "second_moment" in known else {"second_moment": None}
    gone |= {} if known & {"layer", "layers"} else {"layers": None}
    gone |= {} if "hypernetwork" in known else {"hypernetworks": ()}
    return replace(options, **gone)


def regularizer_text(text: str) -> str:
    """A type for arguments: a registered regularizer's name, and perhaps its settings."""
    name, _, settings = text.partition(":")
    if name not in REGULARIZERS.names:
        raise argparse.ArgumentTypeError(str(unknown_name("regularizer", name, REGULARIZERS.names)))
    if settings and not all("=" in part for part in settings.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} does not set anything; expected e.g. sadr:gamma=0.01,heads=all")
    return text


def made_regularizer(text: str) -> Any:
    """The regularizer that a text such as ``sadr:gamma=0.01,heads=all`` describes.

    Raises:
        DriftlensError: an unknown name or setting, or a value that the regularizer refuses.
    """
    name, _, settings = text.partition(":")
    kind = REGULARIZERS.find(name)
    known = {item.name for item in fields(kind) if item.init}
    given: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        setting, _, value = (piece.strip() for piece in part.partition("="))
        if setting not in known:
            raise unknown_name(f"setting of {name}", setting, sorted(known))
        try:
            given[setting] = json.loads(value)
        except ValueError:  # a plain text
            given[setting] = value
    try:
        return kind(**given)
    except TypeError as error:
        raise DriftlensError(f"the regularizer {text!r} cannot be made: {error}") from error


def _layers(editor: str, layers: tuple[int, ...], known: Collection[str]) -> dict[str, Any]:
    """What an editor calls the layers that it edits."""
    if "layers" in known:
        return {"layers": layers}
    if "layer" in known and len(layers) == 1:
        return {"layer": layers[0]}
    limit = "one" if "layer" in known else "none of your choice"
    raise DriftlensError(f"--layers names {len(layers)} layers, but {editor} edits {limit}")


class _Further(argparse.Action):
    """One more value of an option that may be repeated."""

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def choose_corpus(
    model: str, corpus: str | None, records: Sequence[Record], *, given: str | None = None, editor: str = "rome"
) -> Corpus | None:
    """The texts of the second moments for the model of that name; None where the editor's own default is right, or
    where it needs none.

    None, too, where a file is ``given`` that holds the second moments. A local model's texts are the true statements of
    ``records``, which it can be trusted to know: nothing goes to the network unasked.

    Raises:
        DriftlensError: an unknown model or corpus; a corpus for an editor that takes none; a local model, and neither a
            corpus nor records.
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


def with_second_moments(
    model: LensModel,
    editor: Editor,
    corpus: Corpus | None = None,
    *,
    on_cost: Callable[[MomentCost], None] | None = None,
    on_texts: Callable[[int], None] | None = None,
) -> Editor:
    """The editor with the second moments of its layers, from the cache where they are there, else over ``corpus``.

    ``on_cost`` is called before they are computed, with what that will cost; ``on_texts`` with the number of texts
    done.
    """
    from driftlens import editors
    from driftlens.editors import default_corpus, open_corpus
    from driftlens.editors.moment_cost import moment_cost
    from driftlens.editors.second_moment import are_cached

    layers = editor.missing_second_moments
    if not layers:
        return editor
    corpus = corpus or open_corpus(default_corpus(model))
    if on_cost is not None and not are_cached(model, layers, corpus, samples=editor.samples):
        on_cost(moment_cost(model, layers, corpus, editor.samples))
    moments = editors.second_moments(model, layers, corpus, samples=editor.samples, on_texts=on_texts)
    return editor.with_second_moments(moments)


def cost_text(editor: Editor, cost: MomentCost) -> str:
    """What the second moments will cost, and how that gets shorter: nothing where it is not worth a line."""
    if cost.seconds < _WORTH_A_LINE:
        return ""
    text = (
        f"the second moment of {layers_text(editor.edited_layers)} takes about {duration(cost.seconds)}: "
        f"{cost.texts:,} texts, once, then cached"
    )
    fewer = max(_FEWEST, int(round(cost.texts / 10, 1 - len(str(cost.texts // 10)))))
    return f"{text}; --samples {fewer} takes about {duration(cost.of(fewer))}" if fewer < cost.texts / 2 else text


def duration(seconds: float) -> str:
    """In the two largest units: "3 h 20 min", "5 min", "40 s"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def editor_text(editor: Editor) -> str:
    """An editor in a few words: "MEMIT at layers 3–8 + SADR γ = 0.01"."""
    from driftlens.editors import SADR

    text = f"{type(editor).__name__} at {layers_text(editor.edited_layers)}"
    for regularizer in editor.regularizers:
        if isinstance(regularizer, SADR):
            text += f" + SADR γ = {regularizer.gamma:g}" + (", all heads" if regularizer.heads == "all" else "")
        else:
            text += f" + {regularizer!r}"
    return text


def layers_text(layers: Sequence[int]) -> str:
    """Ascending layers as they are read: "layer 5", "layers 3–8", "layers 1, 3 and 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}–{layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
