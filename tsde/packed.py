"""Gzip files, unpacked piece by piece and up to a bound: a few kilobytes can claim to be terabytes."""

from __future__ import annotations

import gzip
import os
from typing import BinaryIO

from tsde.errors import ConfigError
from tsde.findings import refusal

SETTING = "TSDE_MAX_UNPACKED"
"""The environment variable that sets another bound, in bytes."""
_ANYHOW, _RATIO = 2**30, 100  # tables of numbers shrink to a third or a tenth, the zeros of a bomb to a thousandth


class Unpacked:
    """What a gzip file holds, `read` like a file.

    It may be a hundred times as large as the file, and 1 GiB in any case.

    Raises:
        TableError: when more comes out. EOFError, BadGzipFile, zlib.error: as of `gzip`, for a damaged file.
        ConfigError: the setting is no number of bytes.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._packed = os.fstat(file.fileno()).st_size
        self._inside, self._name, self._count = gzip.GzipFile(fileobj=file), name, 0
        self._most = _bound(self._packed)

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        data = self._inside.read(size)
        self._count += len(data)
        if self._count > self._most:
            raise refusal(
                "E-GZIP-LARGE",
                f"{self._name}: {self._packed:,} bytes of gzip unpack to more than {self._most:,}, as no table does; "
                f"if it is one, set {SETTING} to the bytes that are allowed, or unpack it yourself",
            )
        return data


def _bound(packed: int) -> int:
    text = os.environ.get(SETTING)
    if text is None:
        return max(_ANYHOW, _RATIO * packed)
    if not text.isdecimal():
        raise ConfigError(f"{SETTING} is {text!r}; expected a whole number of bytes, such as 8589934592")
    return int(text)
