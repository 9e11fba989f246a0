"""The server of a comparison: many annotators at once, killed in the middle, and nobody's answers for anybody else."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from driftlens import DriftlensError
from driftlens.human import CRITERIA, Comparison, read_answers
from driftlens.human.server import ANSWERS, application, links
from driftlens.human.store import AnswerStore
from tests.support.browser import Page, needs_browser, visit
from tests.support.comparisons import NASTY, comparison

pytest.importorskip("uvicorn", reason="the extra 'human' is not installed")
pytest.importorskip("starlette", reason="the extra 'human' is not installed")

NAMES = [criterion.name for criterion in CRITERIA]

SERVE = """
import sys
from driftlens.human import Comparison
from driftlens.human.server import serve
serve(Comparison.load(sys.argv[1]), sys.argv[2], port=int(sys.argv[3]), on_ready=lambda port: print(port, flush=True))
"""


class Server:
    """A server process that can be killed and started again at the same port."""

    def __init__(self, study: Comparison, folder: Path) -> None:
        self.key, self.database, self.port = folder / "key.json", folder / ANSWERS, 0
        study.save(self.key)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, str(self.key), str(self.database), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]

    def ask(self, path: str, body: Any = None, *, kind: str = "application/json") -> tuple[int, bytes, Any]:
        """Status, body and headers of a GET, or of a PUT with `body`."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.method = "PUT"
            request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers


@contextmanager
def serving(study: Comparison, folder: Path) -> Generator[Server]:
    server = Server(study, folder)
    try:
        yield server
    finally:
        server.kill()


def answer(revision: int = 1, choice: str = "A", **more: Any) -> dict[str, Any]:
    return {"revision": revision, "shown": [1, 0], "choices": dict.fromkeys(NAMES, choice), "seconds": 3.5, **more}


def test_nine_annotators_at_once_and_two_kills(tmp_path: Path):
    study = comparison(20, checks=0)
    people, _ = links(tmp_path / ANSWERS, study, 9)
    given: dict[str, dict[str, list[str]]] = {name: {} for name in people}
    refused: list[BaseException] = []
    retried = 0

    def annotate(name: str, path: str) -> None:
        """Answer every pair, half of them again; send again what got no reply, as the page does."""
        nonlocal retried
        draw = random.Random(name)
        try:
            for at, item in enumerate(draw.sample(study.items, 20)):
                for revision in range(1, 2 + at % 2):
                    choices = {criterion: draw.choice(["A", "B", "tie"]) for criterion in NAMES}
                    body = {"revision": revision, "shown": [0, 1], "choices": choices, "seconds": float(revision)}
                    while True:
                        try:
                            status, reply, _ = server.ask(f"{path}answers/{item.id}", body)
                        except (OSError, HTTPException):  # nobody there, or gone in the middle of the reply
                            retried += 1
                            time.sleep(0.05)
                            continue
                        assert (status, json.loads(reply)) == (200, {"revision": revision})
                        given[name][item.id] = list(choices.values())
                        break
        except BaseException as error:
            refused.append(error)
            raise

    with serving(study, tmp_path) as server:
        threads = [threading.Thread(target=annotate, args=each) for each in people.items()]
        for thread in threads:
            thread.start()
        for kill in (1, 2):
            wanted = 9 * 20 * kill // 3
            while sum(map(len, given.values())) < wanted and not refused:
                time.sleep(0.01)
            server.kill()
            server.start()
        for thread in threads:
            thread.join()
        assert not refused
        assert retried > 0
        with AnswerStore.open(tmp_path / ANSWERS) as store:
            _, exported, _ = server.ask(f"/overview/{store.overview_token}/answers.json")

    (tmp_path / "answers.json").write_bytes(exported)
    for place in (tmp_path / ANSWERS, tmp_path / "answers.json"):
        sheets = read_answers([place])
        assert [sheet.annotator for sheet in sheets] == [f"annotator-{number:02d}" for number in range(1, 10)]
        for sheet in sheets:
            found = {each.item: [each.choices[name] for name in NAMES] for each in sheet.answers}
            assert len(sheet.answers) == 20  # none twice
            assert found == given[sheet.annotator]  # none lost, none another's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def study() -> Comparison:
    return comparison(4)


@pytest.fixture(scope="module")
def people(study: Comparison, folder: Path) -> tuple[dict[str, str], str]:
    return links(folder / ANSWERS, study, 3)


@pytest.fixture(scope="module")
def server(study: Comparison, folder: Path, people: Any) -> Generator[Server]:
    with serving(study, folder) as running:
        yield running


def test_a_wrong_token_is_refused(server: Server, study: Comparison, people: tuple[dict[str, str], str]):
    own, overview = people
    token = own["annotator-01"].split("/")[2]
    item = study.items[0].id
    wrong = [token[:-1], token + "x", token.upper(), "%27%20OR%20%271%27=%271", overview.split("/")[2]]
    for each in wrong:
        status, body, _ = server.ask(f"/a/{each}/")
        assert status == 403
        assert b"This link is not valid" in body
        assert not any(text.encode() in body for text in study.items[0].texts)
        assert server.ask(f"/a/{each}/answers/{item}", answer())[0] == 403
        assert server.ask(f"/a/{each}/comment", {"revision": 1, "comment": "x"})[0] == 403
    for each in (token, token + "x", "%27"):
        assert server.ask(f"/overview/{each}/")[0] == 403
        assert server.ask(f"/overview/{each}/answers.json")[0] == 403
    assert server.ask("/")[0] == 200
    for path in (
        "/docs",
        "/answers.sqlite",
        "/key.json",
        "/a/",
        f"/a/{token}/answers.json",
        f"/a/{token}/../../key.json",
    ):
        assert server.ask(path)[0] in (404, 403)


def test_nobody_sees_anothers_answers(server: Server, study: Comparison, people: tuple[dict[str, str], str]):
    first, second = people[0]["annotator-01"], people[0]["annotator-02"]
    item = study.items[1].id
    assert server.ask(f"{first}answers/{item}", answer(choice="B", seconds=77.25))[0] == 200
    assert server.ask(f"{first}comment", {"revision": 1, "comment": "mine alone"})[0] == 200
    own, other = (server.ask(path)[1].decode() for path in (first, second))
    for mine in ("77.25", "mine alone", "annotator-01"):
        assert mine in own
        assert mine not in other
    assert first.split("/")[2] not in other


def test_pages_are_escaped_and_sent_with_care(server: Server, people: tuple[dict[str, str], str]):
    for path in (people[0]["annotator-01"], people[1], "/", "/a/nobody/"):
        _, body, headers = server.ask(path)
        page = body.decode()
        assert NASTY not in page
        assert "<b>text</b>" not in page
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "0 of 6" in server.ask(people[1])[1].decode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no JSON", 422),
        (b"[]", 422),
        (b"\xff", 422),
        (b"[" * 10_000, 422),
        ({}, 422),
        (answer(revision=0), 422),
        (answer(revision=True), 422),
        (answer(revision=2**60), 422),
        (answer(choice="C"), 422),
        (answer(shown=[0, 0]), 422),
        (answer(choices={"beauty": "A"}), 422),
        (answer(more="x" * 20_000), 413),
    ],
)
def test_bad_answers_are_refused(server: Server, study: Comparison, people: Any, body: Any, status: int):
    path = people[0]["annotator-03"]
    assert server.ask(f"{path}answers/{study.items[0].id}", body)[0] == status
    assert server.ask(f"{path}answers/{study.items[0].id}", answer(), kind="text/plain")[0] == 415
    assert server.ask(f"{path}answers/nothing", answer())[0] == 422
    assert '"answers":{}' in server.ask(path)[1].decode()


def test_late_and_repeated_answers_change_nothing(tmp_path: Path):
    with AnswerStore.open(tmp_path / ANSWERS, study="s") as store:
        ada, bo = store.invite(2)
        assert store.put(ada, "x", 2, {"n": 2}) == 2
        assert store.put(ada, "x", 2, {"n": "again"}) == 2
        assert store.put(ada, "x", 1, {"n": 1}) == 2
        assert store.put(bo, "x", 1, {"n": 3}) == 1
        assert store.known(ada)["answers"] == {"x": {"n": 2, "revision": 2}}
        assert store.put(ada, "x", 3, {"n": 4}) == 3
        assert store.known(ada)["answers"] == {"x": {"n": 4, "revision": 3}}
        assert store.put_comment(ada, 5, "a") == 5
        assert store.put_comment(ada, 4, "b") == 5
        assert store.known(ada)["comment"] == {"text": "a", "revision": 5}
        # More links later leave those that were sent valid.
        assert store.invite(4)[:2] == [ada, bo]
        assert store.invite(1)[:2] == [ada, bo]
    assert (tmp_path / ANSWERS).stat().st_mode & 0o077 == 0


def test_a_database_of_another_study_is_refused(tmp_path: Path):
    application(comparison(2), tmp_path / ANSWERS)
    with pytest.raises(DriftlensError, match="answers to another study"):
        application(comparison(3), tmp_path / ANSWERS)
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be read as one" * 100)
    with pytest.raises(DriftlensError, match="is not a database of answers"):
        application(comparison(2), tmp_path / "text.sqlite")
    with pytest.raises(DriftlensError, match="there are no answers at"), AnswerStore.open(tmp_path / "none.sqlite"):
        pass


@needs_browser()
def test_the_page_goes_on_after_the_server_was_gone(tmp_path: Path):
    study = comparison(4, checks=0)
    people, overview = links(tmp_path / ANSWERS, study, 2)
    with serving(study, tmp_path) as server:
        origin = f"http://127.0.0.1:{server.port}"

        async def until(page: Page, words: str, where: str = "saved") -> None:
            import asyncio

            for _ in range(400):
                if words in await page.evaluate(f"document.getElementById('{where}').textContent"):
                    return
                await asyncio.sleep(0.05)
            pytest.fail(f"{where} never says {words!r}")

        async def session(page: Page) -> None:
            await page.evaluate("document.getElementById('begin').click()")
            for key in ("a", "t", "b", "Enter"):
                await page.press(key)
            await until(page, "Saved")
            server.kill()
            for key in ("b", "b", "b"):
                await page.press(key)
            await until(page, "Not saved yet")
            server.start()
            await until(page, "Saved")
            await page.press("Enter")
            # Elsewhere, or in a browser that kept nothing: the server knows what was answered.
            await page.evaluate("localStorage.clear()")
            await page.reload()
            assert "2 of 4 pairs" in await page.evaluate("document.getElementById('resume').textContent")
            await page.evaluate("document.getElementById('begin').click()")
            assert await page.evaluate("document.getElementById('place').textContent") == "Pair 3 of 4"
            for _ in range(2):
                for key in ("t", "t", "t", "Enter"):
                    await page.press(key)
            await until(page, "All answers are saved", "sent")

        page = visit(origin + people["annotator-01"], session)
        # The server that was away is the one thing complained about, and nothing else is asked for.
        assert all("ERR_CONNECTION_REFUSED" in error for error in page.errors)
        assert all(url.startswith(origin) or url == "data:," for url in page.requests)
        assert "4 of 4" in server.ask(overview)[1].decode()
    sheets = read_answers([tmp_path / ANSWERS])
    assert [len(sheet.answers) for sheet in sheets] == [4]
    choices = sorted(tuple(each.choices.values()) for each in sheets[0].answers)
    assert choices == [("A", "tie", "B"), ("B", "B", "B"), ("tie", "tie", "tie"), ("tie", "tie", "tie")]
