"""Directories written whole or not at all, and refused when torn, altered, foreign or from a newer program.

What a kill, a full disk or a second writer leave is in test_crashes.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch

from tsde import artifact, files
from tsde.artifact import read_files, write_files
from tsde.errors import ArtifactError, CannotWriteError, MissingInputError
from tsde.files import write_file

FILES = {"about.json": b'{"a": 1}', "baseline/notes.txt": b"\x00binary\xff"}
TENSORS = {
    "weights.safetensors": {
        "matrix": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        "half": torch.tensor([1.5, -2.0], dtype=torch.float64),
        "index": torch.tensor([2**40]),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0),
        "scalar": torch.tensor(float("nan")),
    },
    "baseline/weights.safetensors": {"tied": torch.ones(3), "also": torch.ones(3)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path / "model", FILES, TENSORS)
    return tmp_path / "model"


def tree(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(folder: Path) -> None:
    plain, tensors = read_files(folder)
    assert plain == FILES
    assert {name: set(group) for name, group in tensors.items()} == {k: set(v) for k, v in TENSORS.items()}
    for name, group in TENSORS.items():
        for key, value in group.items():
            back = tensors[name][key]
            assert back.dtype == value.dtype and torch.equal(back.nan_to_num(9.0), value.nan_to_num(9.0))
    assert set(os.listdir(folder.parent)) == {"model"}


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    shared = torch.arange(8.0)
    write_files(tmp_path / "m", {}, {"w.safetensors": {"whole": shared, "part": shared[2:4], "again": shared}})
    group = read_files(tmp_path / "m")[1]["w.safetensors"]
    assert torch.equal(group["whole"], shared) and torch.equal(group["part"], shared[2:4])


def test_equal_contents_are_equal_bytes(tmp_path: Path, folder: Path) -> None:
    write_files(tmp_path / "other", FILES, TENSORS)
    assert tree(tmp_path / "other") == tree(folder)


def test_others_may_read_it(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["about.json", "weights.safetensors", "baseline/weights.safetensors"])
def test_one_altered_byte_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256"):
        read_files(folder)


def test_a_torn_file_is_noticed(folder: Path) -> None:
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        read_files(folder)


@pytest.mark.parametrize("name", ["about.json", "baseline/weights.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        read_files(folder)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        read_files(tmp_path / "nowhere")


def test_a_directory_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text("{}")
    with pytest.raises(ArtifactError, match="manifest"):
        read_files(tmp_path)


UNREADABLE = {
    "empty": "",
    "text": "not json",
    "list": "[]",
    "nothing": "{}",
    "no files": '{"schema": 1}',
    "no kind": '{"schema": 1, "files": {}}',
    "schema of text": '{"schema": "1", "kind": "state", "files": {}}',
    "schema of truth": '{"schema": true, "kind": "state", "files": {}}',
    "schema of NaN": '{"schema": NaN, "kind": "state", "files": {}}',
    "files of a number": '{"schema": 1, "kind": "state", "files": 3}',
    "files of a list": '{"schema": 1, "kind": "state", "files": ["a"]}',
    "digest of a number": '{"schema": 1, "kind": "state", "files": {"about.json": 3}}',
    "a key twice": '{"schema": 9, "schema": 1, "kind": "state", "files": {}}',
    "a file twice": '{"schema": 1, "kind": "state", "files": {"a": "0", "a": "1"}}',
    "deep": "[" * 100_000 + "]" * 100_000,
    "huge": '{"schema": 1, "kind": "state", "files": {}}' + " " * 2**20,
    "long number": '{"schema": ' + "9" * 5000 + ', "kind": "state", "files": {}}',
    "latin": "\xff\xfe",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"not a manifest of tsde.*make it again") as caught:
        read_files(folder)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_manifest_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere.json")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere.json")
    with pytest.raises(ArtifactError, match="has no manifest"):
        read_files(folder)


def test_another_kind_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "d", FILES, {}, kind="dataset")
    with pytest.raises(ArtifactError, match=r"is a 'dataset' of tsde, expected a model"):
        read_files(tmp_path / "d", kind="model")


@pytest.mark.parametrize("name", ["extra.txt", "baseline/extra.txt", ".hidden", "new/deep/file"])
def test_what_the_manifest_does_not_name_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is not named.*remove it"):
        read_files(folder)


def test_garbage_with_a_matching_digest_is_no_tensors(tmp_path: Path) -> None:
    for garbage in (b"", b"\0" * 9, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x10\0\0\0\0\0\0\0" + b"{" * 16):
        write_files(tmp_path / "m", {"weights.safetensors": garbage}, {})
        with pytest.raises(ArtifactError, match=r"weights\.safetensors holds no tensors"):
            read_files(tmp_path / "m")


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_newer_schema_is_refused(folder: Path) -> None:
    edit_manifest(folder, schema=artifact.SCHEMA_VERSION + 1)
    with pytest.raises(ArtifactError, match=r"schema 2.*upgrade"):
        read_files(folder)


def test_names_outside_the_directory_are_refused(folder: Path) -> None:
    secret = folder.parent / "secret.txt"
    secret.write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret.txt", "baseline/../../secret.txt", str(secret), "", ".", "a//b", "a\\b", "a\nb", "a/b/c"):
        edit_manifest(folder, files={name: digest})
        with pytest.raises(ArtifactError, match="outside"):
            read_files(folder)


def test_links_are_refused_wherever_they_lead(folder: Path) -> None:
    inside = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "link.txt").symlink_to(folder / "about.json")
    with pytest.raises(ArtifactError, match="link"):
        read_files(folder)
    edit_manifest(folder, files={**inside, "link.txt": inside["about.json"]})
    with pytest.raises(ArtifactError, match="link"):
        read_files(folder)
    (folder / "link.txt").unlink()
    edit_manifest(folder, files=inside)
    (folder / "baseline").rename(folder.parent / "elsewhere")
    (folder / "baseline").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ArtifactError, match="baseline"):
        read_files(folder)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder: Path) -> None:
    (folder / "about.json").unlink()
    os.mkfifo(folder / "about.json")
    with pytest.raises(ArtifactError, match=r"about\.json is a link or no plain file"):
        read_files(folder)


def test_the_directory_itself_may_be_a_link(folder: Path) -> None:
    link = folder.parent / "current"
    link.symlink_to(folder)
    assert read_files(link)[0] == FILES
    write_files(link, {"new.txt": b"new"}, {})
    assert link.is_symlink() and read_files(folder) == ({"new.txt": b"new"}, {})
    assert sorted(os.listdir(folder.parent)) == ["current", "model"]


def test_an_old_version_is_replaced_whole(folder: Path) -> None:
    write_files(folder, {"new.txt": b"new"}, {})
    assert set(tree(folder)) == {"new.txt", "manifest.json"}
    assert read_files(folder) == ({"new.txt": b"new"}, {})
    assert os.listdir(folder.parent) == ["model"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_files(tmp_path / "model", FILES, {})
    assert read_files(tmp_path / "model")[0] == FILES


def test_parents_are_made(tmp_path: Path) -> None:
    write_files(tmp_path / "a" / "b" / "model", FILES, {})
    assert read_files(tmp_path / "a" / "b" / "model")[0] == FILES


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(CannotWriteError, match="photos"):
        write_files(tmp_path / "photos", FILES, {})
    assert tree(tmp_path / "photos") == {"holiday.jpg": b"dear"}


@pytest.mark.parametrize("text", ['{"name": "My web app", "icons": []}', "[1, 2]", "not json"])
def test_a_foreign_directory_with_a_manifest_of_its_own_is_refused(tmp_path: Path, text: str) -> None:
    """`manifest.json` is a common name: browser extensions, web applications and dbt have one."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(text)
    (tmp_path / "app" / "work.py").write_bytes(b"dear")
    with pytest.raises(CannotWriteError, match="app"):
        write_files(tmp_path / "app", FILES, {})
    assert set(tree(tmp_path / "app")) == {"manifest.json", "work.py"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"dear")
    with pytest.raises(CannotWriteError):
        write_files(tmp_path / "model", FILES, {})
    with pytest.raises(CannotWriteError):
        write_files(tmp_path / "model" / "inside", FILES, {})
    assert tree(tmp_path) == {"model": b"dear"}


def test_a_failed_write_leaves_the_old_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(folder)

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(CannotWriteError, match="No space left"):
        write_files(folder, {"new.txt": b"new"}, {})
    assert tree(folder.parent) == {f"model/{name}": data for name, data in before.items()}


def test_a_failed_exchange_leaves_the_old_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(folder)

    def broken(one: Path, other: Path) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_exchange", broken)
    with pytest.raises(CannotWriteError, match="Input/output error"):
        write_files(folder, {"new.txt": b"new"}, {})
    assert tree(folder) == before and os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("failing", [1, 2])
def test_without_an_exchange_a_failed_rename_leaves_the_old_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, rename, calls = tree(folder), os.rename, []

    def fragile(source: str | Path, target: str | Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(files.os, "rename", fragile)
    with pytest.raises(CannotWriteError, match="Input/output error"):
        write_files(folder, {"new.txt": b"new"}, {})
    assert tree(folder) == before and os.listdir(folder.parent) == ["model"]


def test_a_failed_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(CannotWriteError):
        write_files(tmp_path / "model", FILES, TENSORS)
    with pytest.raises(CannotWriteError, match=r"report\.html"):
        write_file(tmp_path / "report.html", b"x")
    assert os.listdir(tmp_path) == []


def test_one_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["report.html"]

    def broken(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(CannotWriteError, match="Input/output error"):
        write_file(path, b"newer")
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["report.html"]
