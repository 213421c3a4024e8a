"""The predictor over HTTP: on loopback unless told, to known names only, with a token if there is one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv6Address
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import tsde
from pipelines.http_guard import Guard, JsonLines, internal, log, problem
from pipelines.http_models import Answer, Limits, Problem, Question, Refusal, refusal
from pipelines.http_service import Service
from tsde.errors import MissingInputError, UsageError
from tsde.predictor import Predictor

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN = "TSDE_TOKEN"
_TOKEN_FORM = re.compile(r"[!-~]{16,}")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_CONNECTIONS = 512  # beyond these, uvicorn itself answers 503
_GRACE = 5.0  # seconds more than a request may take


@dataclass(frozen=True)
class Settings:
    """How to serve: where to listen, the names to answer to, the token to ask for, and the limits of a request."""

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = LOOPBACK
    token: str | None = None
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, host: str, port: int, hosts: Sequence[str], token_file: Path | None, limits: Sequence[str]) -> Settings:
        """The settings that the command line describes; a token comes from a file or the environment, never from it.

        Raises:
            UsageError: an unknown or absurd limit, no host, a name that no request has, two tokens, or a short one.
            MissingInputError: no such file.
        """
        if not host.strip():
            raise UsageError("--host: expected an address, got nothing; 127.0.0.1 is for this machine alone")
        pairs = dict(text.partition("=")[::2] for text in limits)
        try:
            bounds = Limits.model_validate(pairs)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UsageError(f"--limit NAME=NUMBER: {wrong}; the names are {', '.join(Limits.model_fields)}") from error
        own = () if host in ("0.0.0.0", "::") else (host,)
        return cls(host, port, (*LOOPBACK, *own, *map(_name, hosts)), _token(token_file), bounds)


def run(model: Path, settings: Settings) -> None:
    """Serve a predictor until SIGTERM, which is a success, or SIGINT; requests that were accepted are finished first.

    Raises:
        UsageError: the port is taken. MissingInputError, ArtifactError: as `Predictor.load` does.
    """
    predictor = Predictor.load(model)
    manifest = hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()
    with listen(settings.host, settings.port) as place:
        _log_as_json()
        signal.signal(signal.SIGTERM, _stopped)
        torch.set_num_threads(1)
        host, port = place.getsockname()[:2]
        log(logging.INFO, "listening", host=host, port=port, model=manifest, token=settings.token is not None)
        if settings.token is None and not host.startswith("127.") and host != "::1":
            log(logging.WARNING, "anybody who reaches this address may ask: set a token", host=host)
        server(application(predictor, settings, manifest), settings).run(sockets=[place])


def application(predictor: Predictor, settings: Settings, manifest: str = "") -> Guard:
    """The service as an ASGI application."""
    service = Service(predictor, settings.limits, manifest)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # No pages of documentation, which would load scripts from elsewhere; the description is at /openapi.json.
    app = FastAPI(
        title="tsde", version=tsde.__version__, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    body = {"required": True, "content": {"application/json": {"schema": Question.model_json_schema()}}}
    refused: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (400, 401, 408, 413, 415, 422, 429, 500, 503)
    }
    app.post("/forecast", response_model=Answer, responses=refused, openapi_extra={"requestBody": body})(
        service.forecast
    )
    for read in (service.metadata, service.healthz, service.readyz):
        app.get(f"/{read.__name__}")(read)
    app.exception_handler(Refusal)(_refused)
    app.exception_handler(HTTPException)(_no_such)
    app.exception_handler(ClientDisconnect)(_gone)
    app.exception_handler(Exception)(_failed)
    return Guard(app, settings.hosts, settings.token, [*app.openapi()["paths"], "/openapi.json"])


def server(app: Guard, settings: Settings) -> uvicorn.Server:
    """The server of an application, which leaves logging to it."""
    return uvicorn.Server(
        uvicorn.Config(
            app, loop="asyncio", http="h11", ws="none", lifespan="on", interface="asgi3", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=int(settings.limits.timeout + _GRACE),
        )
    )  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: the address is not ours, or taken.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error


def _name(text: str) -> str:
    """A name or an address as requests have it in the header Host, without brackets."""
    name = text.removeprefix("[").removesuffix("]")
    if _NAME.fullmatch(name):
        return name
    try:
        return str(IPv6Address(name))
    except ValueError as error:
        example = "such as forecasts.example or 192.0.2.7"
        message = f"--allowed-host: expected a name or an address without scheme and port, {example}, got {text!r}"
        raise UsageError(message) from error


def _token(file: Path | None) -> str | None:
    text = os.environ.get(TOKEN)
    if file is not None:
        if text is not None:
            raise UsageError(f"the token stands in {TOKEN} and in --token-file: leave out one of them")
        try:
            text = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as error:
            raise MissingInputError(f"{file}: expected a readable file that holds a token ({error})") from error
    if text is not None and not _TOKEN_FORM.fullmatch(text):
        remedy = 'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        raise UsageError(f"expected a token of at least 16 ASCII characters without blanks; {remedy}")
    return text


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name in ("tsde-serve", "tsde", "uvicorn.error", "py.warnings", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def _stopped(number: int, stack: FrameType | None) -> None:
    """While it serves, uvicorn listens to signals, and raises them again when all is finished: then this is the end."""
    sys.exit(0)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problem(error)


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}; there are POST /forecast and GET /metadata, /healthz, /readyz, /openapi.json"
    return problem(refusal(HTTPStatus(error.status_code), "E-HTTP", message, **(error.headers or {})))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the log alone: nobody is there to read it


async def _failed(request: Request, error: Exception) -> Response:
    return problem(internal())
