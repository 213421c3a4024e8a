"""Kills `tsde train` at random moments and counts what survives: `python benchmarks/kills.py 200`.

Each training is started, killed with SIGKILL at a random moment, resumed, killed again, and so on until a run comes
through. After every kill each directory that tsde wrote is read back and the workers must be gone; at the end weights,
calibration and scores must equal those of a training that nobody disturbed, byte by byte. Every fourth training has two
workers. The outcome is written to KILLS.md.

Each command is a fork of this process, which has imported everything: importing takes longer than a tiny training and
leaves nothing on the disk. Workers are processes of their own, as always.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pipelines.train  # noqa: F401  (imported before any fork)
from pipelines.cli import app
from tsde.artifact import read_files
from tsde.synthetic import spirals

SETTINGS = [
    *("train.steps=24", "train.validate_every=1", "train.members=2", "train.batch=8", "windows.held_out=50"),
    *("model.modes=4", "model.width=8", "model.horizon_modes=4", "model.steps=3"),
]
MOST_CHANGES = 16  # of a directory, before a kill
LATE = 0.08  # share of kills that wait until all members are trained


@dataclass
class Tally:
    """What was seen so far."""

    kills: int = 0
    trainings: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def arguments(folder: Path, workers: int) -> list[str]:
    """Start, or go on where a working directory is."""
    if (folder / "model.run").exists():
        return ["train", "--quiet", "--no-track", "--resume", str(folder / "model.run")]
    settings = [text for setting in (*SETTINGS, f"train.workers={workers}") for text in ("--set", setting)]
    places = ["--data", str(folder.parent / "table.csv"), "--out", str(folder / "model")]
    return ["train", "--quiet", "--no-track", *places, "--horizon", "1", *settings]


def launch(folder: Path, workers: int) -> int:
    """The command in a process of its own; returns its id."""
    words = arguments(folder, workers)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["KILLS_FOLDER"] = str(folder)
        app(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    finally:
        os._exit(code)


def ended(child: int, patience: float) -> int | None:
    """How it ended, as a shell would say it with signals negative; None if it did not in that many seconds."""
    until = time.monotonic() + patience
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def results(model: Path) -> dict[str, str | bytes]:
    """What must not depend on kills: everything but times and versions."""
    files, _ = read_files(model, "model")
    kept: dict[str, str | bytes] = {name: data for name, data in files.items() if not name.endswith("card.json")}
    kept["scores"] = json.dumps(json.loads(files["card.json"])["scores"])
    return kept | {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*.safetensors")}


ENDING = ("scoring and saving", "with a model saved before")


def moment(folder: Path) -> str:
    """How far a training was when it was killed."""
    checkpoints = folder / "model.run" / "checkpoints"
    if (folder / "model").exists():
        return ENDING[1]
    if not (checkpoints / "job").exists():
        return "before training"
    if not any(checkpoints.glob("member-*")):
        return "before a checkpoint"
    done = sum((checkpoints / f"member-{member}").exists() for member in (0, 1))
    return ENDING[0] if done == 2 else "training"


def torn(folder: Path) -> list[str]:
    """Directories of tsde that cannot be read, of all there are under their final names."""
    found = []
    for manifest in folder.rglob("manifest.json"):
        if any(part.endswith(".tmp") for part in manifest.relative_to(folder).parts):
            continue
        kind = "model" if manifest.parent.name == "model" else "state"
        try:
            read_files(manifest.parent, kind)
        except Exception as error:
            found.append(f"torn: {error}")
    return found


def orphans(folder: Path, patience: float = 10.0) -> list[str]:
    """Processes of this training that outlive it for longer than a loaded machine needs to end them."""
    mark, until = f"KILLS_FOLDER={folder}".encode(), time.monotonic() + patience
    while True:
        alive = [place.parent.name for place in Path("/proc").glob("[0-9]*/environ") if _has(place, mark)]
        if not alive or time.monotonic() > until:
            return [f"process {number} outlived its parent" for number in alive]
        time.sleep(0.05)


def _has(environ: Path, mark: bytes) -> bool:
    try:
        return mark in environ.read_bytes().split(b"\0")
    except OSError:
        return False


def strike(child: int, folder: Path) -> int:
    """Kill a training after a random number of changes on the disk, or while it scores and saves; how it ended.

    Counting changes instead of seconds meets all moments alike on a machine that does other work too.
    """
    late, left, seen = random.random() < LATE, random.randint(0, MOST_CHANGES), state(folder)
    longest = 1.0 if late or not left else 0.02
    while (late and moment(folder) not in ENDING) or (not late and left > 0):
        if (code := ended(child, 0.002)) is not None:
            return code
        left, seen = left - (state(folder) != seen), state(folder)
    if (code := ended(child, random.uniform(0, longest))) is not None:
        return code
    os.kill(child, signal.SIGKILL)
    return ended(child, math.inf) or 0


def state(folder: Path) -> list[int]:
    """Changes whenever a name appears or goes in one of the directories that a training writes to."""
    found = []
    for place in (folder, folder / "model.run", folder / "model.run" / "checkpoints"):
        try:
            found.append(place.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return found


def survive(folder: Path, workers: int, wanted: int, tally: Tally) -> None:
    """One training, killed until `wanted` kills are reached or it came through between two of them."""
    folder.mkdir()
    tally.trainings += 1
    while True:
        child = launch(folder, workers)
        code = strike(child, folder) if tally.kills < wanted else ended(child, math.inf)
        if code == 0:
            return
        if code != -signal.SIGKILL:
            log = (folder / "log").read_text(errors="replace")[-500:]
            tally.failures.append(f"{folder.name}: exit code {code}: {log}")
            return
        tally.kills += 1
        tally.moments[moment(folder)] += 1
        tally.failures += [f"{folder.name}: {text}" for text in (*orphans(folder), *torn(folder))]
        print(f"{tally.kills} kills, {len(tally.failures)} failures, last {moment(folder)}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further training after so many")
    wanted = parser.parse_args()
    random.seed(wanted.seed)
    tally, started = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        spirals(30, 12, seed=3, missing=0.2).to_csv(root / "table.csv", index=False)
        expected: dict[int, dict[str, str | bytes]] = {}
        for workers in (1, 2):
            survive(root / f"undisturbed-{workers}", workers, 0, tally)
            expected[workers] = results(root / f"undisturbed-{workers}" / "model")
        while tally.kills < wanted.kills and time.monotonic() - started < 60 * wanted.minutes:
            workers = 2 if tally.trainings % 4 == 3 else 1
            folder = root / f"disturbed-{tally.trainings}"
            survive(folder, workers, wanted.kills, tally)
            if tally.failures and "exit code" in tally.failures[-1]:
                continue
            found = results(folder / "model")
            differing = [name for name in expected[workers] if found.get(name) != expected[workers][name]]
            tally.failures += [f"{folder.name}: {name} differs" for name in differing]
            litter = {path.name for path in folder.iterdir()} - {"model", "log"}
            tally.failures += [f"{folder.name}: left {name}" for name in litter]
            if b"Traceback" in (folder / "log").read_bytes():
                tally.failures.append(f"{folder.name}: a traceback in the log")
    report(tally, time.monotonic() - started)
    raise SystemExit(bool(tally.failures))


def report(tally: Tally, seconds: float) -> None:
    moments = "\n".join(f"| {name} | {count} |" for name, count in tally.moments.most_common())
    failures = "\n".join(f"- {text}" for text in tally.failures) or "None."
    trainings = tally.trainings - 2
    text = f"""# Kills

Made by `python benchmarks/kills.py {tally.kills}` on {sys.platform} in {seconds / 60:.0f} minutes.

{tally.kills} kills of `tsde train` and `tsde train --resume` with SIGKILL at random moments, in {trainings} trainings
of two members, every fourth with two workers. After every kill each directory was read back, and no process may
be left; in the end weights, calibration and scores are compared byte by byte with those of an undisturbed run.

| moment of the kill | kills |
| --- | --- |
{moments}

Failures:

{failures}
"""
    (Path(__file__).parent / "KILLS.md").write_text(text)


if __name__ == "__main__":
    main()
