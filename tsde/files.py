"""What appears whole or not at all: single files, and the directories that others fill.

Everything is written beside its place as `.NAME.xxxxxxxx.tmp`, synced, and renamed. A writer holds the lock of its
temporary while it lives, so the next writer of the same name tells what a dead one left and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tsde.errors import CannotWriteError
from tsde.locks import locked

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def write_file(path: Path, data: bytes) -> None:
    """Write one file whole or not at all; a link stays one, and its target is written.

    Raises:
        CannotWriteError: if it cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary sibling to write to, which takes the place of `path` once the disk has all of it.

    Raises:
        CannotWriteError: if it cannot be written.
    """
    place = Path(os.path.realpath(path))
    try:
        with staged(place) as temporary:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
            sync_directory(place.parent)
    except OSError as error:
        raise CannotWriteError(f"cannot write {path}: {error.strerror or error}") from error


def write_synced(path: Path, data: bytes) -> None:
    """Write, and wait until the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def sync_directory(folder: Path) -> None:
    """Wait until the disk has the names in a directory."""
    if os.name == "nt":  # no directory can be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged(place: Path, folder: bool = False) -> Iterator[Path]:
    """A new temporary sibling of `place`, a file or a directory, to fill and to rename.

    What is left under its name is removed afterwards, and first what dead writers of `place` left.

    Raises:
        OSError: it cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(place)
    with ExitStack() as locks:
        temporary = _claim(place, folder, locks)
        try:
            yield temporary
        finally:
            remove(temporary)


def install(temporary: Path, place: Path) -> None:
    """Put a finished directory in its place; what was there is under the temporary's name afterwards, or gone.

    Raises:
        OSError: it cannot be done; what was there is there.
    """
    if not place.exists():
        os.rename(temporary, place)
    elif not _exchange(temporary, place):
        aside = temporary.with_suffix(".old")
        os.rename(place, aside)
        try:
            os.rename(temporary, place)
        except OSError:
            os.rename(aside, place)
            raise
        remove(aside)


def discard(folder: Path) -> None:
    """Remove a directory: its name is gone at once, so it is never seen half empty.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = _temporary_name(folder)
    os.rename(folder, aside)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a directory, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def leftovers(place: Path, suffix: str) -> list[Path]:
    """Siblings of `place` that a writer of it made: `.tmp` while filling, `.old` for what it moved aside."""
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}{re.escape(suffix)}")
    with suppress(OSError):
        return sorted(path for path in place.parent.iterdir() if pattern.fullmatch(path.name))
    return []


def clear_abandoned(place: Path) -> None:
    """Remove what dead writers of `place` left beside it."""
    abandoned = leftovers(place, ".tmp")
    if place.exists():
        abandoned += leftovers(place, ".old")
    for path in abandoned:
        with suppress(OSError), locked(path) as held:
            if held:
                remove(path)


def _claim(place: Path, folder: bool, locks: ExitStack) -> Path:
    """A locked temporary; another try if somebody took the fresh, still unlocked one for a dead writer's."""
    while True:
        temporary = _make(place, folder)
        with suppress(FileNotFoundError):
            held = locks.enter_context(locked(temporary))
            if held is not False and temporary.exists():
                return temporary


def _make(place: Path, folder: bool) -> Path:
    path = _temporary_name(place)
    if folder:
        path.mkdir()
    else:
        path.open("xb").close()
    return path


def _temporary_name(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))
