"""Make the editor that a command's options describe.

1. :func:`check_layers` checks, before any weight is loaded, that the model has the layers in the options.
2. :func:`make_editor` changes the model's preset by the options.
3. :func:`editor_text` describes the editor in a few words.

`driftlens.options.editor` declares the options; `driftlens.options.moments` computes second moments.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.editor import EditorOptions
from driftlens.registry import EDITORS, REGULARIZERS

if TYPE_CHECKING:
    from driftlens.editors.base import Editor
    from driftlens.models import LensModel

__all__ = [
    "applicable",
    "check_layers",
    "editor_text",
    "layers_text",
    "made_regularizer",
    "make_editor",
]

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


OptionsT = TypeVar("OptionsT", bound=EditorOptions)


def check_layers(options: EditorOptions, model: str) -> None:
    """Check that the named model has the layers in the options; this reads its configuration, but no weights.

    Raises:
        DriftlensError: a layer does not exist, or there is no attention above the edit for SADR to restrain.
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
    """Make the editor's preset for ``model``, changed by ``options``; its second moments are not computed yet.

    Raises:
        DriftlensError: a layer does not exist, or there is no attention above the edit for SADR to restrain.
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
        regularizers.insert(0, SADR(gamma=gamma, heads=options.sadr_heads or "selected"))
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
    own: Any = editor
    lengths = options.contexts or own.sampling.lengths
    return own.changed(sampling=replace(own.sampling, lengths=lengths, seed=options.seed))


def applicable(options: OptionsT) -> OptionsT:
    """The options without the settings that their editor lacks, for tables over several editors."""
    known = {item.name for item in fields(EDITORS.find(options.editor)) if item.init}
    gone: dict[str, Any] = {option: None for option, setting in _SETTINGS.items() if setting not in known}
    gone |= {} if "sampling" in known else {"contexts": None}
    gone |= {} if "second_moment" in known else {"second_moment": None}
    gone |= {} if known & {"layer", "layers"} else {"layers": None}
    gone |= {} if "hypernetwork" in known else {"hypernetworks": ()}
    return replace(options, **gone)


def made_regularizer(text: str) -> Any:
    """Make the regularizer that a text such as ``sadr:gamma=0.01,heads=all`` describes.

    Raises:
        DriftlensError: an unknown name or setting, or an invalid value.
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
    """The name of the editor's setting for its layers."""
    if "layers" in known:
        return {"layers": layers}
    if "layer" in known and len(layers) == 1:
        return {"layer": layers[0]}
    limit = "one" if "layer" in known else "none of your choice"
    raise DriftlensError(f"--layers names {len(layers)} layers, but {editor} edits {limit}")


def editor_text(editor: Editor) -> str:
    """Describe an editor in a few words, e.g. "MEMIT at layers 3–8 + SADR γ = 0.01"."""
    from driftlens.editors import SADR

    text = f"{type(editor).__name__} at {layers_text(editor.edited_layers)}"
    for regularizer in editor.regularizers:
        if isinstance(regularizer, SADR):
            text += f" + SADR γ = {regularizer.gamma:g}" + (", all heads" if regularizer.heads == "all" else "")
        else:
            text += f" + {regularizer!r}"
    return text


def layers_text(layers: Sequence[int]) -> str:
    """Format ascending layers as text: "layer 5", "layers 3–8", "layers 1, 3 and 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}–{layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
