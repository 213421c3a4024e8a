"""What stands before and around the HTTP service: known hosts, a token, one log line per request and no data in it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from traceback import extract_tb
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.http_models import Refusal, refusal

OPEN = ("/healthz", "/readyz")
"""Paths that need no token: they tell nothing, and probes have none."""
_log = logging.getLogger("tsde-serve")
_DRAINED, _DRAINING = 2**26, 2.0  # bytes and seconds that are read after a refusal


class Guard:
    """The outermost application: nothing that it refuses reaches the service, and nothing leaves without a log line.

    Args:
        hosts: names by which the service may be called, so that no foreign page can reach it through a browser.
        token: what `Authorization: Bearer` must hold; None asks for none.
        paths: those that exist, since a log may not repeat what a client made up.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], token: str | None, paths: Sequence[str]) -> None:
        self.app, self.paths = app, frozenset(paths)
        self.hosts = frozenset(host.lower() for host in hosts)
        self.token = None if token is None else _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 0
        about = {"id": uuid.uuid4().hex, "method": scope["method"] if len(scope["method"]) < 8 else "other"}
        about["path"] = scope["path"] if scope["path"] in self.paths else "other"
        facts: dict[str, Any] = {}
        body = _Body(scope, receive)
        scope["state"] = {**scope.get("state", {}), "facts": facts}

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await body.drain()
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"], headers["Cache-Control"] = about["id"], "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, body.receive, watched)
        except Refusal as error:
            await problem(error)(scope, receive, watched)
        except asyncio.CancelledError:  # by a second Ctrl-C
            if not status:
                await problem(ending())(scope, receive, watched)
        except Exception as error:
            log(logging.ERROR, "failure", **about, **place(error))
            if not status:
                await problem(internal())(scope, receive, watched)
        finally:
            seconds = round(time.perf_counter() - began, 4)
            log(logging.INFO, "request", **about, status=status, seconds=seconds, **facts)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if _host(headers.get("host", "")) not in self.hosts:
            message = "the service is not known by the name in the header Host; start it with --allowed-host NAME"
            raise refusal(HTTPStatus.BAD_REQUEST, "E-HOST", message)
        if self.token is None or scope["path"] in OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(_digest(given.strip()), self.token) or kind.lower() != "bearer":
            message = "expected the header Authorization: Bearer TOKEN with the token of this service"
            raise refusal(HTTPStatus.UNAUTHORIZED, "E-TOKEN", message, WWW_Authenticate="Bearer")


class _Body:
    """What a client sends. A refusal may come before it is read; one that still sends would then see a broken
    connection in place of the answer, so what is left is read first, if that is soon done, and thrown away."""

    def __init__(self, scope: Scope, receive: Receive):
        self._receive, self._left = receive, True
        headers = Headers(scope=scope)
        self._held = "expect" in headers  # until somebody asks for it
        self._huge = int(headers.get("content-length", "0")) > _DRAINED

    async def receive(self) -> Message:
        self._held = False
        message = await self._receive()
        self._left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read on to the end, unless it is far away or the client waits to be asked."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAINING):
                while self._left and not self._held and not self._huge and size <= _DRAINED:
                    size += len((await self.receive()).get("body", b""))


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request, counted as it arrives.

    Raises:
        Refusal: 415 for another type than JSON in UTF-8, 413 above `most` bytes, 408 after `seconds`.
        ClientDisconnect: there is nobody left to answer.
    """
    kind, _, parameters = request.headers.get("content-type", "").lower().replace(" ", "").partition(";")
    encoding = request.headers.get("content-encoding", "identity")
    if (
        kind != "application/json"
        or parameters not in ("", "charset=utf-8", 'charset="utf-8"')
        or encoding != "identity"
    ):
        message = "expected Content-Type: application/json, in UTF-8 and without a Content-Encoding"
        raise refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "E-CONTENT-TYPE", message)
    message = f"the body is larger than {most:,} bytes; send fewer series at a time"
    too_large = refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "E-TOO-LARGE", message, Connection="close")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {seconds:g} seconds; send it faster, or less of it"
        raise refusal(HTTPStatus.REQUEST_TIMEOUT, "E-SLOW", message, Connection="close") from None
    return bytes(body)


async def until_gone(request: Request) -> None:
    """Wait until the client hangs up; to be called after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def problem(error: Refusal) -> JSONResponse:
    """A refusal as a response."""
    found = [asdict(finding) for finding in error.findings]
    return JSONResponse({"findings": found}, error.status, error.headers)


def internal() -> Refusal:
    """What a client learns of a mistake of ours; the log says where it happened."""
    message = "the service failed; its log has the place under the id of the header X-Request-ID"
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "E-INTERNAL", message)


def ending() -> Refusal:
    """What a client learns whose forecast is given up because the service ends at once."""
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "E-ENDING", "the service is ending; ask again when it is back")


def place(error: BaseException) -> dict[str, Any]:
    """Type and place of an error, without its message, which might quote a cell."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[-5:]]
    return {"error": type(error).__name__, "at": frames}


def log(level: int, event: str, **fields: Any) -> None:
    """One line of JSON."""
    _log.log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event and fields; of an error only type and place."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage().partition("\n")[0]  # asyncio puts the objects concerned on further lines
        if record.name == "py.warnings":
            event = ":".join(event.split(":")[:3])  # the place and the kind of a warning, not its text
        line = {"time": moment, "level": record.levelname.lower(), "event": event}
        line |= record.__dict__.get("fields", {})
        if record.exc_info and record.exc_info[1]:
            line |= place(record.exc_info[1])
        return json.dumps(line)


def _digest(token: str) -> bytes:
    """Digests have one length, so that a comparison in constant time hides even the token's."""
    return hashlib.sha256(token.encode()).digest()


def _host(header: str) -> str | None:
    """The name in a Host header, without its port; None if it has none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
