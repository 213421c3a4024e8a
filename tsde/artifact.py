"""Directories that are written whole or not at all, and that know when they were altered.

A directory holds plain files, tensors as safetensors, and a `manifest.json` with what it is and the SHA-256 of each.
Nothing here can execute code on loading, and nothing is read that the manifest does not name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tsde.errors import ArtifactError, CannotWriteError, MissingInputError
from tsde.files import install, leftovers, staged, sync_directory, write_synced

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**20
_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_REMEDY = "copy or make it again"
_TRIES = 5


def write_files(
    folder: Path, files: Mapping[str, bytes], tensors: Mapping[str, Mapping[str, Tensor]], kind: str = "state"
) -> None:
    """Replace `folder` by one that holds exactly these files; names may contain one `/`.

    Everything is written to a temporary sibling, synced, and put into place in one step, so that a process that is
    killed, or a disk that is full, leaves the old version or the new one. Where the system cannot exchange two names
    in one step (none but Linux, and not on NFS), a kill between two renames leaves the old version as
    `.NAME.xxxxxxxx.old`, and reading says so.

    Args:
        kind: what the directory is; it replaces another only of its own kind.

    Raises:
        CannotWriteError: if it cannot be written, or if `folder` exists and is something else.
    """
    payload = dict(files)
    for name, group in tensors.items():
        payload[name] = save_tensors({key: value.detach().contiguous().clone() for key, value in group.items()})
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(payload.items())}
    payload[_MANIFEST] = json.dumps({"schema": SCHEMA_VERSION, "kind": kind, "files": digests}, indent=1).encode()
    place = Path(os.path.realpath(folder))  # a link stays one, and what it points to is replaced
    require_replaceable(place, kind)
    try:
        with staged(place, folder=True) as temporary:
            for name, data in payload.items():
                write_synced(temporary / name, data)
            for inner in {(temporary / name).parent for name in payload}:
                sync_directory(inner)
            install(temporary, place)
            sync_directory(place.parent)
    except OSError as error:
        raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error


def read_files(folder: Path, kind: str = "state") -> tuple[dict[str, bytes], dict[str, dict[str, Tensor]]]:
    """Plain files and tensor files of a directory, each checked against the manifest.

    Raises:
        MissingInputError: if there is no such directory.
        ArtifactError: if it is not one of ours or of another kind, is from a newer version, or a file is missing,
            altered, a link, or more than the manifest names.
    """
    folder = Path(folder)
    for _ in range(_TRIES):  # a writer may replace the directory while it is read
        version = _version(folder)
        try:
            return _read(folder, kind)
        except (ArtifactError, MissingInputError):
            if _version(folder) == version:
                raise
    return _read(folder, kind)


def require_replaceable(folder: Path, kind: str) -> None:
    """Refuse to replace anything but nothing, an empty directory, or a directory of the same kind.

    A file called `manifest.json` is no proof: the name is a common one.

    Raises:
        CannotWriteError: if `folder` is something else.
    """
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        found = _manifest(folder).kind
    except ArtifactError:
        found = None
    if found != kind:
        what = f"is a {found} of tsde, not a {kind}" if found else "was not written by tsde"
        raise CannotWriteError(f"{folder} exists and {what}; give another name or remove it first")


class _Manifest(NamedTuple):
    schema: int
    kind: str
    files: dict[str, str]


def _manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(f"{folder} has no {_MANIFEST}: expected a directory written by tsde; name another one")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_MANIFEST + 1)
        if len(data) > _LARGEST_MANIFEST:
            raise ValueError(f"it is larger than {_LARGEST_MANIFEST:,} bytes")
        document = parse_json(data)
        found = _Manifest(document["schema"], document["kind"], document["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a manifest of tsde ({_brief(error)}): {_REMEDY}") from error
    texts = [found.kind, *found.files, *found.files.values()] if isinstance(found.files, dict) else [None]
    if type(found.schema) is not int or not all(isinstance(text, str) for text in texts):
        raise ArtifactError(f"{path} is not a manifest of tsde (schema, kind or files are of a wrong type): {_REMEDY}")
    return found


def parse_json(data: bytes) -> Any:
    """JSON without the liberties of most parsers: no key twice, no NaN or infinity.

    Raises:
        ValueError: it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    def refuse(text: str) -> None:
        raise ValueError(f"expected finite numbers, found {text}")

    try:
        return json.loads(data, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _read(folder: Path, kind: str) -> tuple[dict[str, bytes], dict[str, dict[str, Tensor]]]:
    if folder.is_file():
        raise MissingInputError(
            f"expected a directory written by tsde, but {folder} is a file: name the directory of a {kind}"
        )
    if not folder.is_dir():
        aside = leftovers(folder, ".old")
        remedy = f"; a writer was killed and left the last version in {aside[-1]}: rename that" if aside else ""
        raise MissingInputError(f"expected a directory written by tsde, but {folder} does not exist{remedy}")
    manifest = _manifest(folder)
    if manifest.schema > SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder} has schema {manifest.schema}, this tsde reads up to {SCHEMA_VERSION}: upgrade tsde"
        )
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} is a {manifest.kind[:40]!r} of tsde, expected a {kind}: name another directory")
    if strange := next((name for name in manifest.files if not _NAME.fullmatch(name)), None):
        raise ArtifactError(f"{folder / _MANIFEST} names {strange!r}, which lies outside the directory: do not use it")
    if extra := next((name for name in _entries(folder) if name not in manifest.files and name != _MANIFEST), None):
        raise ArtifactError(f"{folder / extra} is not named in {_MANIFEST}: expected what tsde wrote alone; remove it")
    files: dict[str, bytes] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in manifest.files.items():
        data = _read_checked(folder / name, digest)
        if name.endswith(".safetensors"):
            tensors[name] = _tensors(folder / name, data)
        else:
            files[name] = data
    return files, tensors


def _read_checked(path: Path, digest: str) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtifactError(f"{path} is a link or no plain file: expected what tsde wrote; {_REMEDY}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:  # before a huge file takes the memory
                raise ArtifactError(f"{path} does not match its SHA-256 in {_MANIFEST}: it was altered; {_REMEDY}")
            file.seek(0)
            return file.read()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: the directory is torn; {_REMEDY}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} holds no tensors as safetensors ({_brief(error)}): {_REMEDY}") from error


def _entries(folder: Path) -> Iterator[str]:
    """Everything in a directory but its directories, relative; a link is an entry, wherever it leads."""
    for place, inner, names in os.walk(folder):
        links = [name for name in inner if (Path(place) / name).is_symlink()]
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in names + links)


def _version(folder: Path) -> tuple[int, int] | None:
    """What changes when the directory is replaced."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
