"""Serve a study in a lab's network: a small ASGI server with a link for every annotator.

| path | content |
| --- | --- |
| ``GET /a/TOKEN/`` | the annotator's page, with the answers given so far |
| ``PUT /a/TOKEN/answers/ITEM`` | an answer (``revision, shown, choices, seconds``); the reply has the stored revision |
| ``PUT /a/TOKEN/comment`` | a comment: ``revision, comment`` |
| ``GET /overview/TOKEN/`` | for the study's organiser: the links, and each annotator's progress |
| ``GET /overview/TOKEN/answers.json`` | all answers, for ``driftlens agree`` |

A token is 128 random bits and gives access to one annotator's answers only.  All answers are in one SQLite file
(:mod:`driftlens.human.store`).  The server has no other state, so it may be stopped, killed and restarted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from driftlens.display.templates import render
from driftlens.errors import DriftlensError
from driftlens.human.answers import Answer
from driftlens.human.comparison import CRITERIA
from driftlens.human.page import comparison_page, policy
from driftlens.human.store import Annotator, AnswerStore

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from driftlens.human.comparison import Comparison

__all__ = ["ANSWERS", "application", "links", "serve"]

ANSWERS = "answers.sqlite"
_LONGEST_BODY = 16_384
_LONGEST_COMMENT = 4000
_MOST_REVISIONS = 2**53  # beyond it a browser cannot count
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def links(path: str | PathLike[str], comparison: Comparison, annotators: int) -> tuple[dict[str, str], str]:
    """The path of each annotator's page by name, and that of the overview; missing annotators are added."""
    with AnswerStore.open(path, study=comparison.id) as store:
        invited = store.invite(annotators)
        return {one.name: f"/a/{one.token}/" for one in invited}, f"/overview/{store.overview_token}/"


def serve(
    comparison: Comparison,
    path: str | PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        comparison: the study.
        path: the database, created if necessary.
        host: the address to listen on.  Any address but loopback gives others access, over plain HTTP.
        port: the port to listen on; 0 chooses a free one.
        on_ready: called with the port when the server accepts requests.

    Raises:
        DriftlensError: Starlette or uvicorn is not installed, or the server cannot listen on the address.
    """
    import socket

    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    app = application(comparison, path)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise DriftlensError(f"cannot listen at {host}:{port} ({reason}); choose another --host or --port") from error
    with listening:
        # No access log, because the paths contain the tokens, which are secret.
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        if on_ready is not None:
            listening.listen()
            on_ready(int(listening.getsockname()[1]))
        uvicorn.Server(config).run(sockets=[listening])


def application(comparison: Comparison, path: str | PathLike[str]) -> Starlette:
    """Return the study as an ASGI application, for your own server.

    Raises:
        DriftlensError: Starlette is not installed, or the database at ``path`` holds another study.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError:
        raise _missing() from None

    database = Path(path)
    with AnswerStore.open(database, study=comparison.id):
        pass  # made, or found to be another study's, before the first request
    desk = _Desk(comparison, database)
    return Starlette(
        routes=[
            Route("/", desk.front),
            Route("/a/{token}/", desk.page),
            Route("/a/{token}/answers/{item}", _put(desk.keep_answer), methods=["PUT"]),
            Route("/a/{token}/comment", _put(desk.keep_comment), methods=["PUT"]),
            Route("/overview/{token}/", desk.overview),
            Route("/overview/{token}/answers.json", desk.export),
        ]
    )


class _Desk:
    """The endpoints.  They are not coroutines: each call runs in its own thread and may wait for the disk."""

    def __init__(self, comparison: Comparison, database: Path) -> None:
        self.comparison = comparison
        self.items = {item.id for item in comparison.items}
        self.database = database

    def front(self, _request: Request) -> Response:
        return _html(_notice("Comparing texts", "Please open the link that you were sent."))

    def page(self, request: Request) -> Response:
        with AnswerStore.open(self.database) as store:
            annotator = store.annotator(request.path_params["token"])
            if annotator is None:
                return _refused()
            known = store.known(annotator)
        return _html(comparison_page(self.comparison, server=known), policy=policy(connects=True))

    def keep_answer(self, request: Request, body: bytes) -> Response:
        item = request.path_params["item"]

        def keep(store: AnswerStore, annotator: Annotator, told: dict[str, Any]) -> int:
            if item not in self.items:
                raise ValueError(f"the study has no item {item!r}")
            answer = Answer.read(told, item=item)
            answered = told.get("answered")
            content = {
                "shown": list(answer.shown),
                "choices": dict(answer.choices),
                "seconds": None if answer.seconds != answer.seconds else answer.seconds,
                "answered": answered[:40] if isinstance(answered, str) else None,
            }
            return store.put(annotator, item, _revision(told), content)

        return self._kept(request, body, keep)

    def keep_comment(self, request: Request, body: bytes) -> Response:
        def keep(store: AnswerStore, annotator: Annotator, told: dict[str, Any]) -> int:
            comment = told.get("comment")
            if not isinstance(comment, str) or len(comment) > _LONGEST_COMMENT:
                raise ValueError(f"a comment is a text of at most {_LONGEST_COMMENT} characters")
            return store.put_comment(annotator, _revision(told), comment)

        return self._kept(request, body, keep)

    def overview(self, request: Request) -> Response:
        with AnswerStore.open(self.database) as store:
            if not _same(request.path_params["token"], store.overview_token):
                return _refused()
            rows = [
                {
                    "name": annotator.name,
                    "link": f"{request.base_url}a/{annotator.token}/",
                    "done": _complete(store.known(annotator)["answers"]),
                }
                for annotator in store.annotators()
            ]
        return _html(render("human/overview.html", title=self.comparison.title, rows=rows, total=len(self.items)))

    def export(self, request: Request) -> Response:
        with AnswerStore.open(self.database) as store:
            if not _same(request.path_params["token"], store.overview_token):
                return _refused()
            sheets = [sheet.told() for sheet in store.sheets()]
        text = json.dumps(sheets, indent=1, ensure_ascii=False) + "\n"
        return _response(text, 200, "application/json", {"Content-Disposition": 'attachment; filename="answers.json"'})

    def _kept(
        self, request: Request, body: bytes, keep: Callable[[AnswerStore, Annotator, dict[str, Any]], int]
    ) -> Response:
        with AnswerStore.open(self.database) as store:
            annotator = store.annotator(request.path_params["token"])
            if annotator is None:
                return _json({"error": "this link is not valid"}, 403)
            try:
                return _json({"revision": keep(store, annotator, _told(body))}, 200)
            except (ValueError, RecursionError) as error:
                return _json({"error": str(error)}, 422)


def _put(keep: Callable[[Request, bytes], Response]) -> Any:
    """An endpoint that reads a small JSON body and then works in a thread."""
    from starlette.concurrency import run_in_threadpool

    async def endpoint(request: Request) -> Response:
        # Another site's page may not send this type without a CORS preflight, which this server does not answer.
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _json({"error": "expected JSON"}, 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_BODY:
                return _json({"error": "too long"}, 413)
        return await run_in_threadpool(keep, request, body)

    return endpoint


def _response(content: str | bytes, status: int, kind: str, headers: Mapping[str, str]) -> Response:
    from starlette.responses import Response

    return Response(content, status, media_type=kind, headers={**_HEADERS, **headers})


def _html(
    content: str | bytes, status: int = 200, *, policy: str = "default-src 'none'; style-src 'unsafe-inline'"
) -> Response:
    headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    return _response(content, status, "text/html; charset=utf-8", headers)


def _json(content: Mapping[str, Any], status: int) -> Response:
    return _response(json.dumps(content), status, "application/json", {})


def _refused() -> Response:
    return _html(_notice("This link is not valid.", "Please check that you have copied all of it."), 403)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _told(body: bytes) -> dict[str, Any]:
    told: Any = json.loads(body)  # a ValueError, as for all that is wrong with it
    if not isinstance(told, dict):
        raise ValueError("expected a JSON object")
    return cast("dict[str, Any]", told)


def _revision(told: Mapping[str, Any]) -> int:
    revision = told.get("revision")
    if not isinstance(revision, int) or isinstance(revision, bool) or not 0 < revision < _MOST_REVISIONS:
        raise ValueError(f"the revision is {revision!r}; expected a whole number from 1")
    return revision


def _complete(answers: Mapping[str, Any]) -> int:
    return sum(all(criterion.name in answer["choices"] for criterion in CRITERIA) for answer in answers.values())


def _notice(title: str, text: str) -> str:
    return render("human/notice.html", title=title, text=text)


def _missing() -> DriftlensError:
    return DriftlensError("--serve needs Starlette and uvicorn; install the extra: pip install 'driftlens[human]'")
