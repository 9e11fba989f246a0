"""Hugging Face's progress bars, shown where there is something to wait for."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["quiet_bars"]


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
