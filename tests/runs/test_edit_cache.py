"""Edits and tables kept on disk: found again by what they depend on, resumed, and made anew when damaged."""

import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from driftlens import ROME, SADR, DriftlensError, Fact
from driftlens.edits import Edit
from driftlens.runs import cached_edits, sharded
from driftlens.runs.shards import settings_hash
from tests.support.tiny import BRIDGE, load_tiny

FACTS = [
    Fact(subject=subject, prompt=prompt, target_true="French", target_new=new)
    for subject, prompt, new in (
        ("Toko Yasuda", "{} plays the", "metal"),
        ("Eiffel Tower", "The {} is in", "Rome"),
        ("Vltava", "Where does the {} end? In", "Delft"),
        ("Apple A5", "{} is produced by", "Nissan"),
        ("Paris", "The mayor of {} is", "Leiden"),
    )
]


@pytest.fixture(scope="module")
def model(checkpoints: Any) -> Any:
    return load_tiny(checkpoints("gpt2"))


@pytest.fixture(scope="module")
def editor(model: Any) -> ROME:
    return ROME(
        layer=1,
        steps=3,
        contexts=("{}",),
        second_moment=torch.eye(model.d_mlp, dtype=torch.float64),
        early_stop_loss=-math.inf,
    )


class Counting:
    """Which facts an editor is really asked for; after `fail_after` of them it breaks off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int = 10**9) -> None:
        self.facts: list[Fact] = []
        real = ROME.edit_many

        def edit_many(editor: ROME, model: Any, facts: Sequence[Fact], **options: Any) -> Any:
            if len(self.facts) + len(facts) > fail_after:
                raise KeyboardInterrupt
            self.facts += facts
            return real(editor, model, facts, **options)

        monkeypatch.setattr(ROME, "edit_many", edit_many)


def assert_same(found: Sequence[Edit], expected: Sequence[Edit]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert dict(one.provenance) == dict(other.provenance)
        assert one.updates.keys() == other.updates.keys()
        for layer in one.updates:
            torch.testing.assert_close(one.updates[layer].left, other.updates[layer].left, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(one.updates[layer].right, other.updates[layer].right, rtol=1e-4, atol=1e-4)


def test_edits_are_made_once(model: Any, editor: ROME, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fresh = [result.edit for result in editor.edit_many(model, FACTS)]
    calls, done = Counting(monkeypatch), list[tuple[int, int]]()
    first = cached_edits(model, editor, FACTS, tmp_path, batch_size=2, on_facts=lambda *now: done.append(now))
    assert_same(first, fresh)
    assert done == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert len(calls.facts) == len(list(tmp_path.iterdir())) == 5
    # Another order, one twice, from disk: bit for bit what was made.
    order = [4, 0, 2, 0]
    again = cached_edits(model, editor, [FACTS[at] for at in order], tmp_path)
    assert len(calls.facts) == 5
    for edit, at in zip(again, order, strict=True):
        assert torch.equal(edit.updates[1].left, first[at].updates[1].left)
        assert torch.equal(edit.updates[1].right, first[at].updates[1].right)
        assert dict(edit.provenance) == dict(first[at].provenance)


def test_whatever_an_edit_depends_on_leads_to_another_file(
    model: Any, editor: ROME, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Any
):
    calls = Counting(monkeypatch)
    one = FACTS[:1]
    changes: list[dict[str, Any]] = [
        {},
        {"layer": 0},
        {"steps": 2},
        {"lr": 0.4},
        {"contexts": ("{}", "The guitar. {}")},
        {"detach_attention": True},
        {"regularizers": (SADR(gamma=0.1),)},
        {"regularizers": (SADR(gamma=0.2),)},
        {"second_moment": 2.0 * torch.eye(model.d_mlp, dtype=torch.float64) + 0.1},
    ]
    for number, change in enumerate(changes, 1):
        cached_edits(model, replace(editor, **change), one, tmp_path)
        assert len(calls.facts) == number, change
    other = load_tiny(checkpoints("gptj"))
    cached_edits(other, replace(editor, second_moment=torch.eye(other.d_mlp)), one, tmp_path)
    assert len(calls.facts) == len(changes) + 1
    # The same model by another name is the same model.
    if BRIDGE:
        moved = tmp_path / "moved"
        shutil.copytree(checkpoints("gpt2"), moved / "elsewhere")
        cached_edits(load_tiny(moved / "elsewhere"), editor, one, tmp_path)
        assert len(calls.facts) == len(changes) + 1


def test_an_interrupted_run_goes_on(model: Any, editor: ROME, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        Counting(patch, fail_after=3)
        with pytest.raises(KeyboardInterrupt):
            cached_edits(model, editor, FACTS, tmp_path, batch_size=2)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 2
    calls = Counting(monkeypatch)
    edits = cached_edits(model, editor, FACTS, tmp_path, batch_size=2)
    assert calls.facts == FACTS[2:]
    assert [edit.provenance["subject"] for edit in edits] == [fact.subject for fact in FACTS]


def test_damaged_files_are_made_again_with_one_warning(
    model: Any, editor: ROME, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = cached_edits(model, editor, FACTS, tmp_path)
    paths = {Edit.load(path).provenance["subject"]: path for path in tmp_path.iterdir()}
    truncated, flipped, swapped, emptied = (paths[fact.subject] for fact in FACTS[:4])
    truncated.write_bytes(truncated.read_bytes()[:-9])
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 4
    flipped.write_bytes(content)
    shutil.copy(paths[FACTS[4].subject], swapped)
    emptied.write_bytes(b"")
    calls = Counting(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"cached edit .* and 3 more is damaged and made again") as caught:
        again = cached_edits(model, editor, FACTS, tmp_path)
    assert len(caught) == 1
    assert calls.facts == FACTS[:4]
    assert_same(again, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(cached_edits(model, editor, FACTS, tmp_path), first)
    assert len(calls.facts) == 4


def test_mistakes_are_told(model: Any, editor: ROME, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DriftlensError, match="it is a file"):
        cached_edits(model, editor, FACTS, tmp_path / "file")
    with pytest.raises(DriftlensError, match="batch_size is 0"):
        cached_edits(model, editor, FACTS, tmp_path, batch_size=0)
    assert cached_edits(model, editor, [], tmp_path) == []


class Squares:
    def __init__(self, fail_after: int = 10**9) -> None:
        self.items: list[int] = []
        self.fail_after = fail_after

    def __call__(self, items: Sequence[int]) -> dict[str, pd.DataFrame]:
        if len(self.items) + len(items) > self.fail_after:
            raise KeyboardInterrupt
        self.items += items
        table = pd.DataFrame({"case": range(len(items)), "square": [item**2 for item in items]})
        return {"table": table, "sums": pd.DataFrame({"sum": [sum(items)]})}


def test_shards_are_put_together_resumed_and_kept(tmp_path: Path):
    items = list(range(10))
    with pytest.raises(KeyboardInterrupt):
        sharded(items, Squares(fail_after=7), tmp_path / "a", size=3)
    work, done = Squares(), list[tuple[int, int]]()
    found = sharded(items, work, tmp_path / "a", size=3, on_items=lambda *now: done.append(now))
    assert work.items == [6, 7, 8, 9]
    assert done == [(3, 10), (6, 10), (9, 10), (10, 10)]
    assert found["table"].to_dict("list") == {"case": items, "square": [item**2 for item in items]}
    assert found["sums"]["sum"].tolist() == [3, 12, 21, 9]
    nothing = Squares(fail_after=0)
    pd.testing.assert_frame_equal(sharded(items, nothing, tmp_path / "a", size=3)["table"], found["table"])


def test_a_damaged_shard_is_computed_again(tmp_path: Path):
    items = list(range(6))
    first = sharded(items, Squares(), tmp_path, size=2)
    (tmp_path / "000002-000004.table.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "000004-000006.sums.parquet").unlink()
    work = Squares()
    with pytest.warns(RuntimeWarning, match="2 damaged shards"):
        again = sharded(items, work, tmp_path, size=2)
    assert work.items == [2, 3, 4, 5]
    pd.testing.assert_frame_equal(again["table"], first["table"])
    with pytest.raises(DriftlensError, match="0 items"):
        sharded([], work, tmp_path)


def test_shards_that_were_swapped_whole_are_noticed(tmp_path: Path):
    """With their indexes, so that every checksum is right."""
    items = list(range(6))
    first = sharded(items, Squares(), tmp_path, size=2)
    for name in ("json", "table.parquet", "sums.parquet"):
        one, other = (tmp_path / f"{stem}.{name}" for stem in ("000000-000002", "000004-000006"))
        aside = one.rename(tmp_path / "aside")
        other.rename(one)
        aside.rename(other)
    work = Squares()
    with pytest.warns(RuntimeWarning, match="2 damaged shards"):
        again = sharded(items, work, tmp_path, size=2)
    assert work.items == [0, 1, 4, 5]
    pd.testing.assert_frame_equal(again["table"], first["table"])


def test_settings_have_one_hash_each():
    assert settings_hash({"a": 1, "b": (2, 3)}) == settings_hash({"b": [2, 3], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 1.5})
