from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import FAMILIES
from tests.support.tiny import shared


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint_folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    """A tiny random checkpoint, one of every family."""
    return checkpoints(request.param)


@pytest.fixture(scope="session")
def lens_model(checkpoint_folder: Path) -> Any:
    """The tiny checkpoint as a LensModel. Shared by all tests: leave its weights as they were."""
    return shared(checkpoint_folder)


@pytest.fixture(scope="session")
def exact_model(checkpoint_folder: Path) -> Any:
    """`lens_model` in float64, for what must hold to the last digits. Shared: leave its weights as they were."""
    return shared(checkpoint_folder, exact=True)
