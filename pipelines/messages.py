"""What a person is told on stderr while a command works: notes, which --quiet leaves out, and warnings, which stay."""

from __future__ import annotations

import io
import logging
import sys

_LOG = logging.getLogger("tsde")


class _Stderr(logging.Handler):
    """Lines on whatever stderr is at the time, so that a test or a server may put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


def listen(quiet: bool = False) -> None:
    """From now on, for this process."""
    _LOG.handlers = [_Stderr()]
    _LOG.setLevel(logging.WARNING if quiet else logging.INFO)
    _LOG.propagate = False


def speak_any_encoding() -> None:
    """Print names as escapes where the terminal's encoding lacks their letters, instead of failing over them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """Something good to know."""
    _LOG.info("%s", text)


def warn(text: str) -> None:
    """Something that did not go as asked."""
    _LOG.warning("warning: %s", text)
