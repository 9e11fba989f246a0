"""The state of a training between two steps, in memory and in a file that an interrupted training goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from driftlens.editors.mend_network import Hypernetwork
from driftlens.errors import DriftlensError
from driftlens.files import atomic_path

__all__ = ["TrainingState"]

FORMAT = "driftlens-mend-state-1"


@dataclass(kw_only=True)
class TrainingState:
    """A network in training.

    Attributes:
        network: as it is now.
        optimizer: its Adam.
        path: the file.
        told: what the training is: a state of another one is refused.
        step: how many steps are done.
        curve: a row for each validation.
        best: the tensors of the best network so far.
        best_step: when that was.
    """

    network: Hypernetwork
    optimizer: torch.optim.Adam
    path: Path
    told: Mapping[str, Any]
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    best_step: int = 0

    def take(self, row: dict[str, float]) -> None:
        """A new row of the curve, and the network with it if its loss is the lowest."""
        least = min((known["loss"] for known in self.curve), default=math.inf)
        self.curve.append(row)
        if row["loss"] < least or not self.best:
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
            self.best_step = self.step

    def save(self) -> None:
        """Write everything, atomically."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for at, parameter in enumerate(self._parameters()):
            for name, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{at}.{name}"] = tensor
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        counted = {"step": self.step, "best_step": self.best_step, "curve": self.curve, "told": self.told}
        content = serialize(tensors, metadata={"format": FORMAT, "state": json.dumps(counted)})
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content)

    def restore(self) -> bool:
        """Read what :meth:`save` wrote, if something is there.

        Raises:
            DriftlensError: it is damaged, or of another training.
        """
        if not self.path.exists():
            return False
        try:
            with safe_open(str(self.path), framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                handle: Any = file
                counted: dict[str, Any] = json.loads((handle.metadata() or {})["state"])
                tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            known = json.loads(json.dumps(self.told))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DriftlensError(f"cannot read {self.path}; delete it to train from the beginning") from error
        if counted["told"] != known:
            raise DriftlensError(
                f"{self.path} is the state of another training (settings, data or model differ); choose another --out, "
                "or delete it to train from the beginning"
            )
        device = self.network.rates.device
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.best = {name: tensor.to(device) for name, tensor in parts["best"].items()}
        for at, parameter in enumerate(self._parameters()):
            prefix = f"{at}."
            own = {
                name.removeprefix(prefix): tensor if name.endswith("step") else tensor.to(device)
                for name, tensor in parts["optimizer"].items()
                if name.startswith(prefix)
            }
            if own:
                self.optimizer.state[parameter] = own
        self.step, self.best_step, self.curve = counted["step"], counted["best_step"], counted["curve"]
        return True

    def forget(self) -> None:
        """Delete the file: the training is done."""
        self.path.unlink(missing_ok=True)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
