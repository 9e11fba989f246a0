"""Control Hugging Face's output while it loads: progress bars for downloads, and nothing else."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["quiet_bars", "quiet_reports"]


@contextmanager
def quiet_reports() -> Generator[None]:
    """Suppress reports of missing, new or misshapen tensors; driftlens reports them in one line."""
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
    """Show progress bars for downloads, which may take an hour, but not for local files."""
    from transformers.utils import logging

    if not quiet or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
