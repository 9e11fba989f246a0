"""Download public data: pinned addresses, checksums and the cache.

A file is downloaded once, into `$DRIFTLENS_CACHE/data` (by default in the user's cache folder), and its SHA-256 is
checked at each use. Known digests are listed here. For other files, the digest of the first download is written beside
the file and checked from then on. This detects a file that changes later, but not one that already differed at the
first download.
"""

import hashlib
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from driftlens.errors import DriftlensError
from driftlens.files import atomic_path, cache_folder, writable_folder

__all__ = ["HOMES", "Home", "fetch"]

_ROME = "https://rome.baulab.info/data/dsets"
_PAPER = (
    "https://raw.githubusercontent.com/PinzhengWang322/Reveal_Attention_Drift/"
    "3ed49af1842e2f263a0cd91ddab2b3a818288a32/data"
)
_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/c3a6bccb5fc37a59dea3197ac36526d44606acd0/benchmark"


@dataclass(frozen=True, kw_only=True)
class Home:
    """A file's address, and its SHA-256 if known."""

    url: str
    sha256: str | None = None

    @property
    def suffix(self) -> str:
        """The file's extension."""
        return Path(self.url).suffix


HOMES = {
    "merged_counterfact": Home(
        url=f"{_PAPER}/merged_counterfact.json",
        sha256="39ba477f5a69989e7b8b856a72f67f533893c7d0e6944437fec800af99392f83",
    ),
    "counterfact": Home(
        url=f"{_ROME}/counterfact.json",
        sha256="d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    ),
    "zsre": Home(url=f"{_ROME}/zsre_mend_eval.json"),
    "wiki_recent": Home(url=f"{_KNOWEDIT}/wiki_recent/recent_test.json"),
    "wiki_counterfact": Home(url=f"{_KNOWEDIT}/wiki_counterfact/test_cf.json"),
    "knowedit_zsre": Home(url=f"{_KNOWEDIT}/ZsRE/ZsRE-test-all.json"),
    "known_facts": Home(
        url=f"{_ROME}/known_1000.json",
        sha256="61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
    ),
    "me_ppl": Home(
        url=f"{_PAPER}/ppl_test/Corpus-50.json",
        sha256="5dff6b23fbce5d9fc600998160ba448304ff37b7a8c931d7df1835c21b41f2bb",
    ),
    "attribute_snippets": Home(url=f"{_ROME}/attribute_snippets.json"),
    "tfidf_vocabulary": Home(url=f"{_ROME}/tfidf_vocab.json"),
    "tfidf_weights": Home(url=f"{_ROME}/idf.npy"),
}


def fetch(name: str) -> Path:
    """Return the path of a file in `HOMES`, verified, and downloaded first if it is not in the cache.

    Raises:
        DriftlensError: the file cannot be downloaded (no network, `HF_HUB_OFFLINE` set) or has another digest.
    """
    home = HOMES[name]
    path = cache_folder() / "data" / f"{name}{home.suffix}"
    if not path.is_file():
        _download(name, home, path)
    expected = home.sha256 or _recorded(path)
    if expected is not None and (found := _digest(path)) != expected:
        raise DriftlensError(
            f"{path} is not the file it should be (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            f"delete it, and it is fetched again"
        )
    return path


def _download(name: str, home: Home, path: Path) -> None:
    advice = f"go online once, or download {home.url} yourself and give the file's path"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DriftlensError(f"{name} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; {advice}")
    writable_folder(path.parent)
    digest = hashlib.sha256()
    with atomic_path(path) as temporary:
        try:
            # Only addresses in HOMES are opened, never one that a user supplies.
            request = Request(_mirrored(home.url), headers={"User-Agent": "driftlens"})
            with urlopen(request, timeout=60) as response, temporary.open("wb") as file:
                while block := response.read(1 << 20):
                    digest.update(block)
                    file.write(block)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            raise DriftlensError(f"cannot fetch {name} from {home.url}: {_reason(error)}; {advice}") from error
        found = digest.hexdigest()
        if home.sha256 is not None and found != home.sha256:
            raise DriftlensError(
                f"{home.url} gave a file with SHA-256 {found[:12]}…, expected {home.sha256[:12]}…; try again, or get "
                f"{name} from somewhere else and give the file's path"
            )
        if home.sha256 is None:
            # Written before the file gets its final name, because a file without a digest would be trusted.
            with atomic_path(_digest_path(path)) as beside:
                beside.write_text(found + "\n", encoding="utf-8")


def _mirrored(url: str) -> str:
    """Rewrite the address to the user's mirror of the Hugging Face hub, if one is set."""
    hub, mirror = "https://huggingface.co", os.environ.get("HF_ENDPOINT")
    return mirror.rstrip("/") + url.removeprefix(hub) if mirror and url.startswith(hub) else url


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DriftlensError(
            f"cannot read {path}: {error.strerror or error}; delete it, and it is fetched again"
        ) from error


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> str | None:
    beside = _digest_path(path)
    return beside.read_text(encoding="utf-8").strip() if beside.is_file() else None


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    return str(reason) or type(error).__name__
