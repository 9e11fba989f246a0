"""Training a MEND hypernetwork: :func:`train_mend`.

1. The records are split (:mod:`driftlens.editors.mend_data`), and mean and deviation of the gradient factors are taken
   over training records.
2. A step averages the objective (:mod:`driftlens.editors.mend_losses`) over a batch of edits.  Adam has one rate for
   the hypernetwork and another for the learned rates.
3. Every so often the objective is measured on validation records.  The best hypernetwork of these is the result.
4. The state is saved as the training goes on.  The same call goes on after any interruption, and its result is the one
   of an uninterrupted training, bit for bit on one machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftlens.data import Record
from driftlens.editors.mend_data import Example, Split, examples, split_records
from driftlens.editors.mend_files import About, TrainedMEND, cached_path, read_about
from driftlens.editors.mend_losses import Drawn, ExampleRows, edit_losses, factors_of
from driftlens.editors.mend_network import Hypernetwork
from driftlens.editors.mend_settings import MENDTraining
from driftlens.editors.mend_state import TrainingState
from driftlens.editors.sadr import SADR
from driftlens.errors import DriftlensError
from driftlens.files import output_file
from driftlens.models import LensModel, check_loaded
from driftlens.models.sites import LINEAR_MAPS, Site
from driftlens.progress import OnDone

__all__ = ["optimizer_for", "train_mend", "training_step"]

_BLOCKS = 3
"""The last so many blocks are edited, as in the paper."""
_STATISTICS = 400
"""Training records that mean and deviation are taken over, at most."""
_SAVE_EVERY = 20.0
"""Seconds between two saves of the state."""
_AT_ONCE = 20
"""Validation records that are edited side by side."""


def train_mend(
    model: LensModel,
    records: Sequence[Record],
    out: str | PathLike[str] | None = None,
    settings: MENDTraining | None = None,
    *,
    data: str = "",
    on_step: OnDone | None = None,
    on_validation: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainedMEND:
    """Train a MEND hypernetwork, or go on with a training that was interrupted.

    Args:
        model: the model to be edited; it stays as it is.
        records: all records of a data set; those that something is measured on are left out
            (:func:`driftlens.editors.mend_data.split_records`).
        out: the file to write; None: one in the cache folder, where :meth:`driftlens.MEND.for_model` finds it.  The
            state lies beside it until the training is done.
        settings: how to train.
        data: what to call the records in the file.
        on_step: called with the number of steps done and the number of all.
        on_validation: called with each new row of the validation curve.

    Raises:
        DriftlensError: too few records; a layer that the model does not have; SADR without a layer above the first
            edited block; another hypernetwork in ``out``; a loss that is not finite.
    """
    check_loaded(model)
    # As when editing: the same in every mode of PyTorch, and the model's weights read for its hash once.
    with model.unchanged(), torch.inference_mode(mode=False), torch.autocast(model.device.type, enabled=False):
        return _trained(model, records, out, settings or MENDTraining(), data, on_step, on_validation)


def _trained(
    model: LensModel,
    records: Sequence[Record],
    out: str | PathLike[str] | None,
    settings: MENDTraining,
    data: str,
    on_step: OnDone | None,
    on_validation: Callable[[Mapping[str, float]], None] | None,
) -> TrainedMEND:
    sites = _sites(model, settings)
    split = split_records(records, measured=settings.measured, seed=settings.seed)
    path = cached_path(model, settings.sadr) if out is None else Path(out)
    told = {
        "model_hash": model.model_hash,
        "settings": {**asdict(settings), "layers": sorted({site.layer for site in sites})},
        "data": split.digest,
        **({"chat": model.frame.around("{}")} if model.frame else {}),
    }
    if path.exists():
        return _finished(path, told)
    with output_file(path):
        training = _Training(model, sites, split, settings)
        state = training.begun(path.with_name(f"{path.stem}.state.safetensors"), told)
        saved = time.monotonic()
        while state.step < settings.steps:
            training.step(state)
            state.step += 1
            if state.step % settings.validate_every == 0 or state.step == settings.steps:
                training.validate(state)
                if on_validation is not None:
                    on_validation(state.curve[-1])
            if time.monotonic() - saved > _SAVE_EVERY:
                state.save()
                saved = time.monotonic()
            if on_step is not None:
                on_step(state.step, settings.steps)
        trained = training.result(state, told, data)
        trained.save(path)
        state.forget()
    return trained


def optimizer_for(network: Hypernetwork, settings: MENDTraining) -> torch.optim.Adam:
    """Adam for a network, with a rate of its own for the learned rates."""
    others = [parameter for name, parameter in network.named_parameters() if name != "rates"]
    rate_lr = settings.lr if settings.optimizer == "published" else settings.rate_lr
    return torch.optim.Adam([{"params": others, "lr": settings.lr}, {"params": [network.rates], "lr": rate_lr}])


def training_step(
    model: LensModel, rows: ExampleRows, state: TrainingState, drawn: Sequence[Drawn], settings: MENDTraining
) -> float:
    """One update of the network by the edits that are drawn; the loss before it.

    Raises:
        DriftlensError: the loss is not finite.
    """
    state.optimizer.zero_grad()
    # Running statistics depend on what came before, so that edits come one after another.
    observe = settings.statistics == "published"
    at_once = 1 if observe else settings.batch_size
    total = 0.0
    for at in range(0, len(drawn), at_once):
        chunk = drawn[at : at + at_once]
        losses = edit_losses(model, rows, state.network, chunk, sadr=settings.sadr, observe=observe)
        each = settings.edit_factor * losses.edit + settings.locality_factor * losses.locality + losses.drift
        loss = each.sum() / settings.batch_size
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        total += float(loss.detach())
    if not math.isfinite(total):
        raise DriftlensError(f"the loss is not finite at step {state.step}; train with a lower lr or rate")
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip)
    state.optimizer.step()
    return total


def _sites(model: LensModel, settings: MENDTraining) -> list[Site]:
    """All linear maps of the blocks' MLPs that the model's family has."""
    layers = settings.layers
    if layers is None:
        layers = tuple(range(max(0, model.n_layers - _BLOCKS), model.n_layers))
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise DriftlensError(f"layer {layer} is out of range; {model.name} has layers 0 to {model.n_layers - 1}")
    if settings.sadr is not None and min(layers) == model.n_layers - 1:
        raise DriftlensError(
            f"layer {min(layers)} is the last of {model.name}: no attention lies above it for SADR to restrain; edit "
            "lower layers too, or train without SADR"
        )
    return [site for layer in sorted(layers) for site in _maps(model, layer)]


def _maps(model: LensModel, layer: int) -> list[Site]:
    found: list[Site] = []
    for linear in LINEAR_MAPS:
        try:
            model.linear(Site(layer, linear))
        except DriftlensError:  # the family has no such map, or none of its own
            continue
        found.append(Site(layer, linear))
    return found


def _finished(path: Path, told: Mapping[str, Any]) -> TrainedMEND:
    about = read_about(path)
    there = {"model_hash": about.model_hash, "settings": about.settings, "data": about.data["digest"]}
    if any(there[name] != told[name] for name in there):
        raise DriftlensError(f"{path} holds another hypernetwork; choose another file, or delete that one")
    return TrainedMEND.load(path)


class _Training:
    """One training: the examples, and what is done to the state."""

    def __init__(self, model: LensModel, sites: Sequence[Site], split: Split, settings: MENDTraining) -> None:
        self.model = model
        self.sites = sites
        self.split = split
        self.settings = settings
        self.train = examples(model, split.train, rephrase=settings.rephrase)
        self.validation = examples(model, split.validation, rephrase=settings.rephrase)
        self.rows = ExampleRows(model, sites[0].layer)
        self._orders: dict[int, list[int]] = {}

    def begun(self, path: Path, told: Mapping[str, Any]) -> TrainingState:
        """The state that was saved, or a new one, with statistics and a first validation."""
        settings, model = self.settings, self.model
        network = Hypernetwork(
            {site: _shape(model, site) for site in self.sites},
            rank=settings.rank or max(8, model.d_model // 16),
            rate=settings.rate,
            sign=settings.sign,
            seed=settings.seed,
        ).to(device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
        # All but the number of steps: an interrupted training may go on for longer.
        own = {name: value for name, value in told["settings"].items() if name != "steps"}
        state = TrainingState(
            network=network, optimizer=optimizer_for(network, settings), path=path, told={**told, "settings": own}
        )
        if state.restore():
            if state.step > settings.steps:
                raise DriftlensError(
                    f"{path} is this training's state after {state.step} steps; give at least so many, or delete it"
                )
        else:
            if settings.statistics == "paper":
                self._take_statistics(network)
                self.validate(state)
            state.save()
        return state

    @torch.no_grad()
    def _take_statistics(self, network: Hypernetwork) -> None:
        order = self._order(0)[:_STATISTICS]
        for at in range(0, len(order), self.settings.batch_size):
            batch = [self.train[place] for place in order[at : at + self.settings.batch_size]]
            factors, _ = factors_of(self.model, self.rows, batch, self.sites)
            for site, own in factors.items():
                network.observe(site, own)

    def step(self, state: TrainingState) -> None:
        """One update."""
        carried = self.settings.optimizer == "published"
        size = self.settings.batch_size
        first = state.step * size + (carried and state.step > 0)
        drawn = [self._drawn(number) for number in range(first, (state.step + 1) * size + carried)]
        training_step(self.model, self.rows, state, drawn, self.settings)

    @torch.no_grad()
    def validate(self, state: TrainingState) -> None:
        """A new row of the curve; the network is kept if it is the best so far."""
        drift = SADR(gamma=1.0) if self.settings.sadr is None else SADR(gamma=1.0, heads=self.settings.sadr.heads)
        parts: list[Tensor] = []
        for at in range(0, len(self.validation), _AT_ONCE):
            drawn = [Drawn(example=example) for example in self.validation[at : at + _AT_ONCE]]
            losses = edit_losses(self.model, self.rows, state.network, drawn, sadr=drift)
            parts.append(torch.stack([losses.before, losses.edit, losses.locality, losses.drift]).detach())
        before, edit, locality, drifted = (float(value) for value in torch.cat(parts, dim=1).double().mean(dim=1))
        gamma = 0.0 if self.settings.sadr is None else self.settings.sadr.gamma
        loss = self.settings.edit_factor * edit + self.settings.locality_factor * locality + gamma * drifted
        row = {"step": state.step, "loss": loss, "before": before, "edit": edit, "locality": locality, "drift": drifted}
        state.take(row)

    def result(self, state: TrainingState, told: Mapping[str, Any], data: str) -> TrainedMEND:
        """The best network."""
        network = state.network
        network.load_state_dict(state.best)
        about = About(
            model=self.model.name,
            model_hash=told["model_hash"],
            sites=[(site.layer, site.map) for site in network.sites],
            shapes=list(network.shapes.values()),
            rank=network.rank,
            sign=network.sign,
            sadr=None
            if self.settings.sadr is None
            else {"gamma": self.settings.sadr.gamma, "heads": self.settings.sadr.heads},
            settings=told["settings"],
            data={
                "name": data,
                "digest": told["data"],
                "train": [record.index for record in self.split.train],
                "validation": [record.index for record in self.split.validation],
            },
            curve=state.curve,
            step=state.best_step,
        )
        return TrainedMEND(network=network.requires_grad_(requires_grad=False), about=about)

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self.train)))
            random.Random(f"driftlens MEND order {self.settings.seed} {epoch}").shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch]

    def _drawn(self, number: int) -> Drawn:
        """The edit of that number, counted from the beginning of the training: it depends on nothing else."""
        epoch, place = divmod(number, len(self.train))
        example: Example = self.train[self._order(epoch)[place]]
        draw = random.Random(f"driftlens MEND prompts {self.settings.seed} {number}")
        return Drawn(
            example=example,
            paraphrase=draw.randrange(len(example.rephrased)),
            locality=draw.randrange(len(example.locality)),
        )


def _shape(model: LensModel, site: Site) -> tuple[int, int]:
    d_in, d_out = model.linear(site)[0].shape
    return d_in, d_out
