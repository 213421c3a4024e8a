"""What is on the disk after a writer was killed at any step, beside a second one, or with no room left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tsde import files
from tsde.artifact import read_files, write_files
from tsde.errors import CannotWriteError, MissingInputError
from tsde.files import write_file
from tsde.locks import locked

if sys.platform == "win32":
    pytest.skip("needs POSIX", allow_module_level=True)

STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "ctypes.dlsym"}
"""Audit events of everything that touches a disk; each comes before its step is done."""


def version(number: int) -> tuple[dict[str, bytes], dict[str, dict[str, torch.Tensor]]]:
    return {"about.json": b"%d" % number}, {"weights.safetensors": {"w": torch.full((50,), float(number))}}


def numbers(folder: Path) -> set[float]:
    plain, tensors = read_files(folder)
    return {float(plain["about.json"]), *tensors["weights.safetensors"]["w"].tolist()}


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do the work in a child that is killed before its `step`-th step; False if it took fewer and finished."""
    child = os.fork()
    if child == 0:
        taken = 0

        def count(event: str, details: object) -> None:
            nonlocal taken
            if event in STEPS:
                taken += 1
                if taken == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replaced"])
def test_a_directory_is_whole_whenever_its_writer_is_killed(existing: bool, tmp_path: Path) -> None:
    folder, seen = tmp_path / "model", set()
    for step in range(1, 1000):
        if existing:
            write_files(folder, *version(1))
        if not killed_at(step, lambda: write_files(folder, *version(2))):
            break
        if folder.exists():
            seen |= numbers(folder)
            assert len(numbers(folder)) == 1
        else:
            assert not existing
        write_files(folder, *version(3))
        assert os.listdir(tmp_path) == ["model"] and numbers(folder) == {3}
        files.remove(folder)
    assert step > 10 and seen == ({1, 2} if existing else {2})


def test_where_names_cannot_be_exchanged_the_old_version_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of the two renames leaves nothing under the name; reading tells where the old version is."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    folder, missing = tmp_path / "model", 0
    for step in range(1, 1000):
        write_files(folder, *version(1))
        if not killed_at(step, lambda: write_files(folder, *version(2))):
            break
        if folder.exists():
            assert len(numbers(folder)) == 1
        else:
            missing += 1
            (aside,) = tmp_path.glob(".model.*.old")
            with pytest.raises(MissingInputError, match=rf"{aside}: rename that"):
                read_files(folder)
            assert numbers(aside) == {1}
        write_files(folder, *version(3))
        write_files(folder, *version(4))
        assert os.listdir(tmp_path) == ["model"] and numbers(folder) == {4}
    assert missing == 1


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    for step in range(1, 100):
        write_file(path, b"old" * 10_000)
        if not killed_at(step, lambda: write_file(path, b"new" * 10_000)):
            break
        assert path.read_bytes() in (b"old" * 10_000, b"new" * 10_000)
        write_file(path, b"next")
        assert os.listdir(tmp_path) == ["f.csv"]
    assert step > 4


def test_what_is_discarded_is_never_seen_half_empty(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in range(1, 100):
        write_files(folder, *version(1))
        if not killed_at(step, lambda: files.discard(folder)):
            break
        assert not folder.exists() or numbers(folder) == {1}
    assert step > 3 and not folder.exists()


def test_the_work_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with files.staged(tmp_path / "model", folder=True) as theirs:
        (theirs / "part").write_bytes(b"half")
        write_files(tmp_path / "model", *version(1))
        assert (theirs / "part").read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["model"]


def test_only_what_a_writer_of_the_same_name_left_is_removed(tmp_path: Path) -> None:
    kept = {
        ".model.tmp",
        ".model.old",
        ".model.backup.tmp",
        ".model.0123456g.tmp",
        ".models.01234567.tmp",
        ".model.swp",
    }
    for name in {*kept, ".model.01234567.tmp"}:
        (tmp_path / name).mkdir()
    (tmp_path / ".model.89abcdef.tmp").symlink_to(tmp_path / ".model.swp")
    write_files(tmp_path / "model", *version(1))
    assert set(os.listdir(tmp_path)) == {*kept, "model", ".model.89abcdef.tmp"}


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path) as mine:
        assert mine is True
        with locked(tmp_path) as second:
            assert second is False
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path) as again:
        assert again is True


def test_who_reads_while_others_write_gets_one_version(tmp_path: Path) -> None:
    folder, stop, found = tmp_path / "model", threading.Event(), []
    write_files(folder, *version(0))

    def replace() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_files(folder, *version(number))

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        until = time.monotonic() + 30
        while len(found) < 100 or (len(set().union(*found)) < 5 and time.monotonic() < until):
            found.append(numbers(folder))
    finally:
        stop.set()
        writer.join()
    assert all(len(one) == 1 for one in found) and len(set().union(*found)) >= 5


def test_a_full_disk_leaves_the_old_version(mounted: Callable[..., Path]) -> None:
    disk = mounted("-t", "tmpfs", "-o", "size=256k", "none")
    write_files(disk / "model", *version(1))
    write_file(disk / "f.csv", b"old")
    big = {"weights.safetensors": {"w": torch.zeros(10**5)}}
    for _ in range(3):
        with pytest.raises(CannotWriteError, match=r"cannot write .*model: No space left"):
            write_files(disk / "model", {}, big)
        with pytest.raises(CannotWriteError, match=r"cannot write .*f\.csv: No space left"):
            write_file(disk / "f.csv", b"new" * 10**5)
    assert numbers(disk / "model") == {1} and (disk / "f.csv").read_bytes() == b"old"
    assert sorted(os.listdir(disk)) == ["f.csv", "model"]


def test_a_directory_that_is_read_only(mounted: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_files(source / "model", *version(1))
    disk = mounted("--bind", str(source))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    assert numbers(disk / "model") == {1}
    with pytest.raises(CannotWriteError, match="Read-only file system"):
        write_files(disk / "model", *version(2))
    with pytest.raises(CannotWriteError, match="Read-only file system"):
        write_file(disk / "f.csv", b"x")
    assert numbers(disk / "model") == {1}
