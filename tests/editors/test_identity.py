"""What makes two settings the same: fields, every number of a tensor, and code; never what an object prints."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from driftlens import ROME, SADR, DriftlensError, Fact
from driftlens.data import TASKS, Record, TaskPrompt
from driftlens.editors.contexts import ContextSampling
from driftlens.editors.identity import UnidentifiedError, identity
from driftlens.runs import benchmark, cached_edits
from tests.support.tiny import load_tiny

FACT = Fact(subject="Eiffel Tower", prompt="The {} is in", target_true="Paris", target_new="Rome")
RECORD = Record(
    index=0,
    fact=FACT,
    tasks={
        **dict.fromkeys(TASKS, ()),
        "rewrite": (TaskPrompt(text="The Eiffel Tower is in", target_true="Paris", target_new="Rome"),),
    },
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted:
    """A penalty with a large tensor of its own, of which neither `repr` nor `==` sees anything."""

    weights: torch.Tensor = field(repr=False, compare=False)

    def penalty(self, attention: Any) -> torch.Tensor:
        return (self.weights.sum() * (attention.edited - attention.vanilla).square()).sum(dim=(0, 2, 3))


class Plain:
    """No dataclass, and it prints nothing of itself."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __repr__(self) -> str:
        return "Plain()"

    def penalty(self, attention: Any) -> torch.Tensor:
        return self.scale * (attention.edited - attention.vanilla).square().sum(dim=(0, 2, 3))


class Colour(Enum):
    """Something with a name."""

    RED = 1


def large(value: float) -> torch.Tensor:
    """Prints as its corners, which are zero."""
    tensor = torch.zeros(200, 200)
    tensor[100, 100] = value
    return tensor


class Slotted:
    """Has no `__dict__`."""

    __slots__ = ("a",)

    def __init__(self, a: float) -> None:
        self.a = a


def scaled(by: float) -> Callable[[float], float]:
    return lambda x: by * x


PAIRS: list[tuple[Any, Any]] = [
    (1, 1.0), (1, True), ("1", 1), (None, "None"), (0.1, 0.1 + 1e-16 * 2), ((1,), [1]), ((1, 2), (12,)),
    (large(1.0), large(2.0)), (torch.zeros(4, 9), torch.zeros(6, 6)), (torch.zeros(2), torch.zeros(2).double()),
    (torch.tensor([1.0, 1 + 1e-12], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)),
    (np.arange(5000.0), np.where(np.arange(5000) == 2500, -1.0, np.arange(5000.0))), (np.zeros(2), torch.zeros(2)),
    (np.array(["a", "b"]), np.array(["a", "c"])), (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
    (Weighted(weights=large(1.0)), Weighted(weights=large(2.0))), (Plain(1.0), Plain(2.0)), (Slotted(1), Slotted(2)),
    (SADR(gamma=0.01), SADR(gamma=0.02)), (SADR(layers=(1,)), SADR(layers=(2,))), (Path("a"), "a"),
    (scaled(1.0), scaled(2.0)), (lambda x: x + 1, lambda x: x + 2), (math.sin, math.cos), (torch.sin, torch.cos),
    (functools.partial(math.pow, 2), functools.partial(math.pow, 3)), (Plain(1.0).penalty, Plain(2.0).penalty),
    (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), ({"a": 1}, {"a": 2}), ({1, 2}, {1, 3}), (Colour.RED, 1),
    (ContextSampling(seed=0), ContextSampling(seed=1)), (Plain, Weighted),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_what_differs_has_another_identity(number: int):
    one, other = PAIRS[number]
    assert identity(one) != identity(other)
    assert identity(one) == identity(one)
    assert identity([one, {"a": (one,)}]) != identity([one, {"a": (other,)}])


def test_equal_things_are_the_same_thing():
    linear = torch.nn.Linear(3, 2)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(linear.state_dict())
    for one, other in (
        (Weighted(weights=large(1.0)), Weighted(weights=large(1.0))), (Plain(1.5), Plain(1.5)), (linear, twin),
        (torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(2, 3).T.contiguous()), (scaled(2.0), scaled(2.0)),
        ({"b", "a"}, {"a", "b"}), (np.float64(0.5), np.float64(0.5)),
    ):  # fmt: skip
        assert identity(one) == identity(other)


def test_plain_settings_read_as_they_print():
    """Manifests and provenance are for people, and those of earlier runs say the same."""
    for value in (SADR(), (SADR(gamma=0.1), SADR()), {"lr": 0.5, "contexts": None}, ContextSampling(), [1, "a", None]):
        assert identity(value) == repr(value)


def test_a_class_written_anew_under_its_name_is_another():
    """As in a notebook, where a regulariser is edited and its cell run again."""

    def written(penalty: Callable[..., Any], factor: int = 2) -> Any:
        return type("Mine", (), {"factor": factor, "penalty": penalty})()

    assert identity(written(lambda self, a: a + 1)) == identity(written(lambda self, a: a + 1))
    assert identity(written(lambda self, a: a + 1)) != identity(written(lambda self, a: a + 2))
    assert identity(written(lambda self, a: a.b)) != identity(written(lambda self, a: a.c))
    assert identity(written(lambda self, a: a + 1)) != identity(written(lambda self, a: a + 1, factor=3))


@pytest.mark.parametrize(
    "thing",
    [object(), (n for n in range(3)), iter([1]), torch.Generator()],
    ids=lambda t: type(t).__name__,
)
def test_what_says_nothing_of_itself_cannot_be_identified(thing: Any):
    for value in (thing, [thing], Plain(thing), lambda x: (thing, x)):
        with pytest.raises(UnidentifiedError, match="cannot be identified") as caught:
            identity(value)
        assert "\n" not in str(caught.value)
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(UnidentifiedError, match="holds itself"):
        identity(ring)


# --- in the caches ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    return load_tiny(checkpoints("gpt2"))


def rome(model: Any, *regularizers: Any) -> ROME:
    settings: dict[str, Any] = {"contexts": ("{}",), "second_moment": torch.eye(model.d_mlp)}
    return ROME(layer=1, steps=6, early_stop_loss=-math.inf, regularizers=regularizers, **settings)


def test_regularisers_with_different_tensors_have_edits_of_their_own(model: Any, tmp_path: Path):
    few, much = Weighted(weights=large(1e-3)), Weighted(weights=large(1e4))
    first = cached_edits(model, rome(model, few), [FACT], tmp_path)[0]
    second = cached_edits(model, rome(model, much), [FACT], tmp_path)[0]
    fresh = rome(model, much).edit(model, FACT).edit
    torch.testing.assert_close(second.updates[1].right, fresh.updates[1].right)
    assert not torch.allclose(first.updates[1].right, second.updates[1].right, rtol=1e-2)
    assert first.provenance["regularizers"] != second.provenance["regularizers"]


def test_runs_of_different_regularisers_are_different_runs(model: Any, tmp_path: Path):
    def run(scale: float) -> Any:
        return benchmark(model, [RECORD], rome(model, Plain(scale)), tmp_path, generate=False)

    run(1.0)
    with pytest.raises(DriftlensError, match=r"holds another run: editor\.regularizers is"):
        run(2.0)


def test_what_cannot_be_identified_is_not_cached(model: Any, tmp_path: Path):
    odd = Plain(0.5)
    for thing in (object(), object()):
        odd = Plain(0.5)
        odd.thing = thing  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.warns(RuntimeWarning, match=r"object cannot be identified.* not cached"):
            found = cached_edits(model, rome(model, odd), [FACT, FACT], tmp_path)
        expected = rome(model, Plain(0.5)).edit(model, FACT).edit
        for edit in found:
            torch.testing.assert_close(edit.updates[1].right, expected.updates[1].right)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DriftlensError, match="cannot be identified"):
        benchmark(model, [RECORD], rome(model, odd), tmp_path / "run", generate=False)
    assert not (tmp_path / "run").exists()


def test_an_editor_of_ones_own_goes_by_its_fields_and_code(model: Any, tmp_path: Path):
    def own(more: Callable[..., Any]) -> Any:
        fields = [("pull", object, dataclasses.field(default=None))]
        options: Any = {"frozen": True, "kw_only": True, "eq": False}
        return dataclasses.make_dataclass(
            "Mine", fields, bases=(ROME,), namespace={"more": more, "__module__": "__main__"}, **options
        )

    def one(self: Any) -> int:
        return 1

    def two(self: Any) -> int:
        return 2

    base = rome(model)
    common = {item.name: getattr(base, item.name) for item in dataclasses.fields(base) if item.init}
    told = [
        own(code)(**common, pull=pull).provenance(model, FACT)
        for code, pull in ((one, large(1.0)), (one, large(2.0)), (two, large(1.0)), (one, large(1.0)))
    ]
    assert told[0] == told[3]
    assert len({each["settings"] for each in told}) == 3
    assert "large" not in told[0]["settings"]
    edits = [cached_edits(model, own(c)(**common, pull=None), [FACT], tmp_path)[0] for c in (one, two)]
    assert len(list(tmp_path.iterdir())) == len(edits) == 2
    assert replace(base).provenance(model, FACT) == base.provenance(model, FACT)
