import os

# Before anything imports transformers: a test that reached the network would be a bug.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from a second thread, and on a busy machine threads that wait for one another burn most of
# the processor.  Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# With DRIFTLENS_CHECK_SHAPES=1 every call of the package is checked against the shapes that its annotations tell.
# Before the package is imported.
if os.environ.get("DRIFTLENS_CHECK_SHAPES", "0") != "0":
    from jaxtyping import install_import_hook

    from tests.support import shapes

    install_import_hook("driftlens", f"{shapes.__name__}.checked")

from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import KINDS, tiny_checkpoint
from tests.support.tiny import BRIDGE, shared


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a family's name to its tiny checkpoint, written once a session."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(family: str) -> Path:
        folder = root / family
        return folder if (folder / "config.json").exists() else tiny_checkpoint(family, folder)

    return get


@pytest.fixture(scope="session", params=KINDS)
def checkpoint_folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    """A tiny random checkpoint, one of every kind; `one_family` takes a single one."""
    return checkpoints(request.param)


@pytest.fixture(scope="session")
def lens_model(checkpoint_folder: Path) -> Any:
    """The tiny checkpoint as a LensModel. Shared by all tests: leave its weights as they were.

    What has a `checkpoint_folder` of its own needs a fixture like this of its own, too: pytest keeps a session's
    fixture by the parameters of the one that it was first made from.
    """
    return shared(checkpoint_folder)


@pytest.fixture(scope="session")
def demo_model() -> Any:
    """The bundled model. Shared by all tests: leave its weights as they were."""
    from driftlens.models import load_model
    from driftlens.models.names import DEMO_WEIGHTS

    if not BRIDGE:
        pytest.skip("load_model needs transformer-lens 4.3")
    if not (DEMO_WEIGHTS / "config.json").is_file():
        pytest.skip(f"the bundled weights are not at {DEMO_WEIGHTS}")
    return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def exact_model(checkpoint_folder: Path) -> Any:
    """`lens_model` in float64, for what must hold to the last digits. Shared: leave its weights as they were."""
    return shared(checkpoint_folder, exact=True)
