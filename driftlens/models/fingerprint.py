"""A short name for a model's exact weights, so that caches and results can say what they were computed with."""

import hashlib
import json

import torch
from torch import Tensor

from driftlens.models.backend import Backend

__all__ = ["fingerprint"]

_SAMPLES = 64


def fingerprint(backend: Backend) -> str:
    """16 hexadecimal digits over configuration, names, shapes, precision and a sample of every tensor.

    The sample is evenly spaced over each tensor. A low-rank edit changes every element of the matrix that it
    is added to, so an edited model has another fingerprint; reading the whole of a large model would take
    minutes.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(backend.description(), sort_keys=True, default=str).encode())
    samples: list[Tensor] = []
    for name, tensor in backend.named_tensors():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        samples.append(_sample(tensor))
    # One transfer for all of them: on a GPU each would wait for the device.
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    count = min(_SAMPLES, flat.numel())
    # Integer arithmetic, so that every device chooses the same elements.
    indices = torch.arange(count, device=flat.device) * max(flat.numel() - 1, 0) // max(count - 1, 1)
    return flat[indices].float()
