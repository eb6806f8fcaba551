"""A handshake in the name of a page, which can read the answer: browsers keep that of their own to themselves.

The handler runs as for any other client; if it lets the client in, the client leaves at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Scope

__all__ = ["PATIENCE", "Question", "answer_of", "read_question"]

_LONGEST_QUESTION: Final = 64 * 1024
_LONGEST_ANSWER: Final = 2000
PATIENCE: Final = 15.0
"""Seconds that a handler gets for its answer."""

_OWN_HEADERS: Final = (b"content-", b"sec-websocket-", b"connection", b"transfer-encoding", b"upgrade")
"""How the headers of a request begin that are not those of the handshake."""


@dataclass(frozen=True, slots=True)
class Question:
    """The handshake that has failed, and whose answer is asked for.

    Attributes:
        path: Its path in the app, encoded for URLs.
        query: Its query.
        subprotocols: What it offered.
    """

    path: str
    query: str
    subprotocols: Sequence[str]


async def read_question(request: Request) -> Question | None:
    """Return what the body of a request asks for; `None` if it does not."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_QUESTION:
                return None
        match json.loads(body):
            case {"path": str(path), "query": str(query), "subprotocols": str(offered)} if path.startswith("/"):
                (path + query + offered).encode("ascii")
                return Question(path, query, offered.split())
            case _:
                return None
    except (ClientDisconnect, ValueError, RecursionError):
        return None


async def answer_of(question: Question, request: Scope) -> dict[str, Any]:
    """Return the `status` of the handshake, 101 if it is accepted and 0 without an answer, and the `text` with it.

    Args:
        question: The handshake.
        request: The scope of the request that asks, with the Starlette app.
    """
    client = _Client()
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            try:
                await request["app"](_handshake(question, request), client.receive, client.send)
            except Exception:
                # A server logs the failure of a handshake; here the page shows it.
                client.status = client.status or 500
    text = client.body[:_LONGEST_ANSWER].decode(errors="replace")
    return {"status": client.status, "text": text or _phrase(client.status)}


class _Client:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._is_first = True
        self._over = asyncio.Event()

    async def receive(self) -> Message:
        if self._is_first:
            self._is_first = False
            return {"type": "websocket.connect"}
        await self._over.wait()
        return {"type": "websocket.disconnect", "code": 1001, "reason": ""}

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self.status = 101
                self._over.set()
            case "websocket.close":
                self.status = self.status or 403
                self._over.set()
            case "websocket.http.response.start":
                self.status = message["status"]
            case "websocket.http.response.body":
                if len(self.body) < _LONGEST_ANSWER:
                    self.body += message.get("body", b"")
                if not message.get("more_body", False):
                    self._over.set()
            case _:
                # The client has left already, so what the handler says is dropped.
                pass


def _handshake(question: Question, request: Scope) -> Scope:
    root: str = request.get("root_path", "")
    headers = [(name, value) for name, value in request["headers"] if not name.startswith(_OWN_HEADERS)]
    headers += [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
    ]
    if question.subprotocols:
        headers.append((b"sec-websocket-protocol", ", ".join(question.subprotocols).encode("latin-1", "replace")))
    kept = {name: request[name] for name in ("asgi", "client", "http_version", "server", "state") if name in request}
    return kept | {
        "type": "websocket",
        "scheme": "wss" if request["scheme"] == "https" else "ws",
        "root_path": root,
        "path": root + unquote(question.path),
        "raw_path": (root + question.path).encode(),
        "query_string": question.query.encode(),
        "headers": headers,
        "subprotocols": list(question.subprotocols),
        "extensions": {"websocket.http.response": {}},
    }


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
