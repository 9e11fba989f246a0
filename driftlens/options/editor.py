"""The command-line options of an editor.

`driftlens.options.editing` makes the editor from them; `driftlens.options.moments` computes its second moments.
"""

import argparse
from dataclasses import dataclass, fields
from typing import Literal, get_args

from driftlens.errors import DriftlensError, unknown_name
from driftlens.options.declaration import Further, flag, flag_of, option
from driftlens.options.parsing import context_lengths, layer_list, name_of, number, seed_number, whole_number
from driftlens.registry import EDITORS, REGULARIZERS

__all__ = ["EDITOR", "RESTRAINT", "EditorOptions", "SADROptions", "editor_names"]

EDITOR = "editor; what is not given comes from the presets for the model"
RESTRAINT = "SADR, which restrains attention drift"
"""The titles of these options in the help."""

Heads = Literal["selected", "all"]


@dataclass(frozen=True, kw_only=True)
class SADROptions:
    """Whether and how strongly SADR restrains attention drift; None means the model's preset."""

    sadr: bool = flag("restrain attention drift while the model is edited", group=RESTRAINT)
    gamma: float | None = option(
        None, "SADR's weight γ; default: the preset's; implies --sadr", "G", number(least=0), group=RESTRAINT
    )
    sadr_heads: Heads | None = option(
        None,
        "which attention heads are restrained: selected (default), or all (the paper's ablation); implies --sadr",
        "H",
        name_of("choice of heads", get_args(Heads)),
        group=RESTRAINT,
        flags=("--sadr-heads", "--heads"),
    )

    def __post_init__(self) -> None:
        # Who says how strongly to restrain, or what, wants it restrained.
        if self.gamma is not None or self.sadr_heads is not None:
            object.__setattr__(self, "sadr", True)


def editor_names() -> str:
    """The names of the registered editors, for the help."""
    *others, last = EDITORS.names
    return f"{', '.join(others)} or {last}"


def _regularizer(text: str) -> str:
    """An argument type: a registered regularizer's name, optionally with settings."""
    name, _, settings = text.partition(":")
    if name not in REGULARIZERS.names:
        raise argparse.ArgumentTypeError(str(unknown_name("regularizer", name, REGULARIZERS.names)))
    if settings and not all("=" in part for part in settings.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} does not set anything; expected e.g. sadr:gamma=0.01,heads=all")
    return text


@dataclass(frozen=True, kw_only=True)
class EditorOptions(SADROptions):
    """The editor and its settings; None means the model's preset.

    Raises:
        DriftlensError: settings that the editor does not accept, such as several layers for ROME.
    """

    editor: str = option(
        "rome",
        lambda: f"{editor_names()} (default %(default)s)",
        "E",
        name_of("editor", lambda: EDITORS.names),
        group=EDITOR,
    )
    regularizers: tuple[str, ...] = option(
        (),
        "a further term of the objective, such as sadr:gamma=0.01,heads=all or one of your own; may be repeated",
        "NAME[:SETTING=VALUE,...]",
        _regularizer,
        group=EDITOR,
        flags=("--regularizer",),
        action=Further,
    )
    layers: tuple[int, ...] | None = option(
        None,
        "layer to edit; memit, pmet and alphaedit take several, such as 3-8 or 3,4,5",
        "L",
        layer_list,
        group=EDITOR,
        flags=("--layers", "--layer"),
    )
    steps: int | None = option(None, "optimisation steps (typical: 20 to 80)", "N", whole_number(1), group=EDITOR)
    lr: float | None = option(None, "learning rate (typical: 0.1 to 0.5)", "X", number(above=0), group=EDITOR)
    clamp: float | None = option(
        None,
        "upper bound on ‖δ‖, the value's change, as a multiple of its norm before the edit (typical: 0.75 to 4)",
        "X",
        number(above=0),
        group=EDITOR,
    )
    weight_decay: float | None = option(
        None, "weight decay of δ (typical: 0.001 to 0.5)", "X", number(least=0), group=EDITOR
    )
    kl: float | None = option(
        None,
        "weight of the essence KL, which keeps what the model says the subject is (typical: 0.0625)",
        "X",
        number(least=0),
        group=EDITOR,
    )
    second_moment_weight: float | None = option(
        None,
        "λ for memit and pmet; larger values edit more weakly (typical: 15000)",
        "X",
        number(above=0),
        group=EDITOR,
    )
    second_moment: str | None = option(
        None,
        "read the edited layer's second moment from this file: .npz of ROME or EasyEdit, or driftlens's "
        ".safetensors; {} in the name stands for the layer's number; default: computed over --corpus",
        "FILE",
        group=EDITOR,
    )
    contexts: tuple[tuple[int, int], ...] | None = option(
        None,
        "context prefixes: N prefixes of L tokens, such as 10x5 or 5x10,10x10; fewer make an edit quicker",
        "LxN",
        context_lengths,
        group=EDITOR,
    )
    corpus: str | None = option(
        None,
        "texts for the second moments: demo, wikipedia, wikitext or a text file; default: the bundled model's "
        "own, the true statements of --data for a local model, else wikipedia",
        "C",
        group=EDITOR,
    )
    samples: int | None = option(None, "use at most N of these texts", "N", whole_number(1), group=EDITOR)
    hypernetworks: tuple[str, ...] = option(
        (),
        "hypernetwork for mend, a file that driftlens train-mend wrote; may be repeated, since mend with SADR "
        "needs one of its own; default: the bundled model's own, or one in the cache folder",
        "FILE",
        group=EDITOR,
        flags=("--hypernetwork",),
        action=Further,
    )
    seed: int = option(0, "seed of the editor's context prefixes (default %(default)s)", "N", seed_number, group=EDITOR)

    def __post_init__(self) -> None:
        if self.editor == "none":
            self._check_nothing_to_edit()
        super().__post_init__()
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
        settings = [item for item in fields(EditorOptions) if item.name not in ("editor", "seed")]
        given = [flag_of(item) for item in settings if getattr(self, item.name) != item.default]
        if given:
            raise DriftlensError(f"--editor none edits nothing; leave {', '.join(given)} out, or choose an editor")
