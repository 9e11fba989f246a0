"""Hash a model's current state, to identify it in caches and results.

1. Every byte of every weight is read, so any change gives another hash: an applied edit, a fine-tuned layer, a write
   through `.data`. xxHash reads about as fast as the memory allows; a model of 135 million float32 weights takes some
   30 ms.
2. Weights on an accelerator are copied to the CPU only if they may have changed. Their digest is reused as long as
   their address, PyTorch's version counter and the sum of all their bits, computed on the device, are the same.
3. The hash also covers the configuration and the tokenizer: its vocabulary and a few encodings.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
import xxhash
from torch import Tensor

from driftlens.models.backend import Backend

__all__ = ["Fingerprint", "tensor_digest", "tokenizer_digest"]

DIGITS = 20
"""Hexadecimal digits of a model's hash. Up to version 0.1.0 it had 16, and was taken over a sample of the weights."""

# What tokenizers of one vocabulary treat apart: digits, capitals, accents, blanks, a script without spaces.
_PROBES = ("The Eiffel Tower is in Paris, 1889.", " a  b\n\tc", "naïve Ünïcode", "法国的首都是")

_Mark: TypeAlias = tuple[Any, ...]


class Fingerprint:
    """The hash of a backend's model, taken anew at every call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept: dict[_Mark, str] = {}

    def now(self) -> str:
        """`DIGITS` hexadecimal digits over the configuration and all weights: names, shapes, precision, bytes."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self._backend.description(), sort_keys=True, default=str).encode())
        named = list(self._backend.named_tensors())
        for (name, tensor), of in zip(named, self._digests([tensor for _, tensor in named]), strict=True):
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype} {of}\n".encode())
        return digest.hexdigest()[:DIGITS]

    def _digests(self, tensors: list[Tensor]) -> list[str]:
        marks = _marks(tensors)
        # Only what is there now: a weight that was replaced must not be remembered by its address.
        kept: dict[_Mark, str] = {}
        for tensor, mark in zip(tensors, marks, strict=True):
            if mark not in kept:  # weights that are tied are read once
                known = None if tensor.device.type == "cpu" else self._kept.get(mark)
                kept[mark] = known or tensor_digest(tensor)
        self._kept = kept
        return [kept[mark] for mark in marks]


def tensor_digest(tensor: Tensor) -> str:
    """A 128-bit hash of all bytes of a tensor, without its shape and precision."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary and of a few encodings, independent of its library's release."""
    known = sorted(tokenizer.get_vocab().items())
    made = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in _PROBES for special in (True, False)]
    told = json.dumps([known, made, tokenizer.eos_token_id], ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def _marks(tensors: Iterable[Tensor]) -> list[_Mark]:
    """The properties of each tensor that can be read without copying it."""
    tensors = list(tensors)
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    by_place: dict[int, int] = {}
    for device in {tensor.device for tensor in away}:
        # One transfer for all of a device's: each would wait for the device.
        there = [tensor for tensor in away if tensor.device == device]
        sums: list[int] = torch.stack([_bit_sum(tensor) for tensor in there]).tolist()
        by_place |= {id(tensor): total for tensor, total in zip(there, sums, strict=True)}
    return [
        (
            tensor.device,
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
            None if tensor.is_inference() else tensor._version,
            by_place.get(id(tensor)),
        )
        for tensor in tensors
    ]


def _bit_sum(tensor: Tensor) -> Tensor:
    """All bits of a tensor as integers of 64 bits, added up modulo 2⁶⁴."""
    flat = tensor.detach().contiguous().reshape(-1)
    wide = torch.int64 if flat.numel() * flat.element_size() % 8 == 0 else torch.uint8
    return flat.view(wide).sum(dtype=torch.int64)
