"""What Hugging Face says while it loads: progress bars where there is something to wait for, and nothing else."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["quiet_bars", "quiet_reports"]


@contextmanager
def quiet_reports() -> Generator[None]:
    """No reports of tensors that are missing, new or of another shape: driftlens refuses them in one line."""
    from logging import CRITICAL

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet_bars(*, quiet: bool) -> Generator[None]:
    """No bars for local files, which are read in moments; bars for a download, which may take an hour."""
    from transformers.utils import logging

    if not quiet or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
