"""Directories that are written whole or not at all, and that know when they were altered.

A directory holds plain files, tensors as safetensors, and last a `manifest.json` with the SHA-256 of each. Nothing
here can execute code on loading.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tsde.errors import ArtifactError, CannotWriteError, MissingInputError
from tsde.files import write_synced

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"


def write_files(
    folder: Path, files: Mapping[str, bytes], tensors: Mapping[str, Mapping[str, Tensor]], kind: str = "state"
) -> None:
    """Replace `folder` by one that holds exactly these files; names may contain one `/`.

    Everything is written to a temporary sibling, synced, and renamed into place.

    Args:
        kind: what the directory is; it replaces another only of its own kind.

    Raises:
        CannotWriteError: if it cannot be written, or if `folder` exists and is something else.
    """
    folder = Path(folder)
    payload = dict(files)
    for name, group in tensors.items():
        payload[name] = save_tensors({key: value.detach().contiguous().clone() for key, value in group.items()})
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(payload.items())}
    payload[_MANIFEST] = json.dumps({"schema": SCHEMA_VERSION, "kind": kind, "files": digests}, indent=1).encode()
    require_replaceable(folder, kind)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, data in payload.items():
            write_synced(temporary / name, data)
        temporary.chmod(0o755)
        _swap(temporary, folder)
    except OSError as error:
        raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def read_files(folder: Path) -> tuple[dict[str, bytes], dict[str, dict[str, Tensor]]]:
    """Plain files and tensor files of a directory, each checked against the manifest.

    Raises:
        MissingInputError: if there is no such directory.
        ArtifactError: if it is not one of ours, is from a newer version, or a file is missing or altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"expected a directory written by tsde, but {folder} does not exist")
    if not (folder / _MANIFEST).is_file():
        raise ArtifactError(f"{folder} has no {_MANIFEST}: expected a directory written by tsde")
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        version, digests = int(manifest["schema"]), dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / _MANIFEST} is not readable as a manifest of tsde") from error
    if version > SCHEMA_VERSION:
        raise ArtifactError(f"{folder} has schema {version}, this tsde reads up to {SCHEMA_VERSION}: upgrade tsde")
    files: dict[str, bytes] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in digests.items():
        data = _read_checked(folder, name, digest)
        if name.endswith(".safetensors"):
            tensors[name] = load_tensors(data)
        else:
            files[name] = data
    return files, tensors


def _read_checked(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder / _MANIFEST} names {name!r}, which lies outside the directory")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: the directory is torn; copy or train it again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactError(f"{path} does not match its SHA-256 in {_MANIFEST}: it was altered or damaged")
    return data


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
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        found = manifest["kind"] if {"schema", "files"} <= set(manifest) else None
    except (OSError, ValueError, TypeError, KeyError):
        found = None
    if found != kind:
        what = f"is a {found} of tsde, not a {kind}" if found else "was not written by tsde"
        raise CannotWriteError(f"{folder} exists and {what}; give another name or remove it first")


def _swap(temporary: Path, folder: Path) -> None:
    """Rename into place; an old version steps aside first, since a full directory cannot be replaced in one call."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    try:
        os.rename(folder, aside / "was")
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(aside / "was", folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
