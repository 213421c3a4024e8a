"""A load on a real `tsde serve` on loopback: good and bad requests mixed, for a while; any surprise is a failure.

    python benchmarks/soak.py --seconds 120 --clients 8 --report benchmarks/SOAK.md

Every request has the statuses that it may get; a busy service may also say 429, and nothing else may be 5xx. Good
requests are asked again and again, and each answer must be the very bytes that came when nobody else asked.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

TSDE = [sys.executable, "-c", "from pipelines.cli import app; app()"]
SAMPLE = str(files("tsde") / "data" / "pbcseq.csv")
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Shot:
    """A request: its kind, what is sent, the statuses that it may get (none: the client hangs up)."""

    kind: str
    body: bytes
    allowed: tuple[int, ...]
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    path: str = "/forecast"
    method: str = "POST"
    expected: bytes | None = None


@dataclass
class Tally:
    """What came of the shots; lists only grow, so threads may share it."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, shot: Shot, status: int, seconds: float) -> None:
        with self.lock:
            self.statuses[shot.kind, status] += 1
            if status == 200 and shot.expected is not None:
                self.seconds.setdefault(shot.kind, []).append(seconds)


def main(
    seconds: Annotated[float, typer.Option(help="How long to ask.")] = 120,
    clients: Annotated[int, typer.Option(help="How many ask at once.")] = 8,
    model: Annotated[Path | None, typer.Option(help="A model of the sample [trains a small one].")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the outcome as Markdown.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of requests.")] = 0,
) -> None:
    """Ask, count, and judge; exit code 1 if anything failed."""
    with tempfile.TemporaryDirectory() as folder:
        with serving(model or trained(Path(folder)), Path(folder) / "log") as (process, port):
            mixed = [(good(port), 0.55), (probes(), 0.1), (bad(), 0.35)]
            tally = load(mixed, port, process.pid, seconds, clients, seed)
            process.send_signal(signal.SIGTERM)
            if process.wait(90) != 0:
                tally.failures.append(f"the service ended with {process.returncode} on SIGTERM")
        judge_log(Path(folder) / "log", tally)
    text = render(tally, seconds, clients, "a briefly trained" if model is None else "another")
    print(text)
    if report is not None:
        report.write_text(text)
    if tally.failures:
        raise typer.Exit(1)


def trained(folder: Path) -> Path:
    """A model of the bundled sample, trained briefly: how long an answer takes does not depend on how good it is."""
    command = ["train", "--data", SAMPLE, "--horizon", "730", "--out", str(folder / "model"), "--no-track", "--quiet"]
    command += ["--set", "train.steps=20", "--set", "train.validate_every=10", "--set", "train.members=2"]
    subprocess.run([*TSDE, *command], check=True, stdout=subprocess.DEVNULL)
    return folder / "model"


@contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`tsde serve` on a free port."""
    with log.open("wb") as file:
        process = subprocess.Popen([*TSDE, "serve", str(model), "--port", "0", "--limit", "body=1000000"], stderr=file)
    try:
        while b"startup complete" not in log.read_bytes():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield process, json.loads(log.read_text().splitlines()[0])["port"]
    finally:
        process.kill()
        process.wait()


def good(port: int) -> list[Shot]:
    """Requests for the sample's patients, with the answers they get while nobody else asks."""
    table = pd.read_csv(SAMPLE).astype(object)
    rows = table.where(table.notna(), None).to_dict("records")
    ids = list(dict.fromkeys(row["unique_id"] for row in rows))
    draw = random.Random(1)

    def of(count: int) -> list[Any]:
        chosen = set(draw.sample(ids, count))
        return [row for row in rows if row["unique_id"] in chosen]

    bodies = [("one series", {"rows": of(1), "horizon": 730, "step": 90}) for _ in range(12)]
    bodies += [("20 series, 10 samples", {"rows": of(20), "horizon": 365, "samples": 10}) for _ in range(4)]
    asked = [{"unique_id": name, "ds": 1000.5 + name} for name in ids[:5]]
    bodies += [("explicit times", {"rows": of(30), "times": asked, "levels": [50, 80, 95]})]
    bodies += [("300 series", {"rows": of(300), "horizon": 365, "step": 180})]
    found = []
    for kind, body in bodies:
        shot = Shot(kind, json.dumps(body).encode(), (200, 429))
        status, answer = fire(shot, port)
        if status != 200:
            raise RuntimeError(f"{kind}: {status} {answer[:300]!r}")
        found.append(Shot(kind, shot.body, shot.allowed, expected=answer))
    return found


def probes() -> list[Shot]:
    """What monitors ask."""
    paths = ("/healthz", "/readyz", "/metadata", "/openapi.json")
    return [Shot(path, b"", (200,), {}, path, "GET") for path in paths]


def bad() -> list[Shot]:
    """Mistakes and malice."""
    row = dict.fromkeys(pd.read_csv(SAMPLE, nrows=0).columns, 1.0)
    question = json.dumps({"rows": [row]}).encode()
    few = {name: row[name] for name in ("unique_id", "ds", "bili")}
    broken = {
        "not JSON": (question[:-1], 400),
        "NaN": (question.replace(b"1.0", b"NaN", 1), 400),
        "a name twice": (b'{"rows": [], "rows": []}', 400),
        "deep nesting": (b"[" * 100_000, 400),
        "noise": (random.Random(2).randbytes(5000), 400),
        "unknown field": (b'{"rows": [], "horizn": 1}', 422),
        "no rows": (b'{"rows": []}', 422),
        "missing channels": (json.dumps({"rows": [few]}).encode(), 422),
        "text for a number": (question.replace(b"1.0", b'"many"'), 422),
        "a row twice": (json.dumps({"rows": [row, row]}).encode(), 422),
        "too many times": (json.dumps({"rows": [row], "horizon": 1e9, "step": 1e-9}).encode(), 413),
        "too large": (b" " * 1_000_001, 413),
    }
    shots = [Shot(kind, body, (status, 429)) for kind, (body, status) in broken.items()]
    shots.append(Shot("wrong type", question, (415, 429), {"Content-Type": "text/csv"}))
    shots.append(Shot("unknown host", question, (400,), {**JSON, "Host": "evil.example"}))
    shots.append(Shot("no such path", b"", (404,), {}, "/nowhere", "GET"))
    shots.append(Shot("wrong method", b"", (405,), {}, "/forecast", "DELETE"))
    return shots + [Shot(kind, question, ()) for kind in ("hangs up", "stops halfway", "noise as HTTP")]


def load(
    mixed: Sequence[tuple[list[Shot], float]], port: int, pid: int, seconds: float, clients: int, seed: int
) -> Tally:
    """Let clients ask in random order until the time is over; memory is looked at every second."""
    tally, began = Tally(), time.monotonic()
    groups, weights = zip(*mixed, strict=True)

    def client(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        while time.monotonic() - began < seconds:
            shot = draw.choice(draw.choices(groups, weights)[0])
            try:
                if shot.allowed:
                    one(shot, port, tally)
                else:
                    rude(shot, port)
                    tally.count(shot, 0, 0.0)
            except (OSError, http.client.HTTPException) as error:
                tally.failures.append(f"{shot.kind}: {error!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() - began < seconds:
        tally.memory.append((time.monotonic() - began, resident(pid)))
        time.sleep(1)
    for thread in threads:
        thread.join()
    return tally


def one(shot: Shot, port: int, tally: Tally) -> None:
    """A request and its verdict; a busy service is left alone for a moment."""
    start = time.perf_counter()
    status, answer = fire(shot, port)
    tally.count(shot, status, time.perf_counter() - start)
    if status not in shot.allowed:
        tally.failures.append(f"{shot.kind}: expected {shot.allowed}, got {status} {answer[:200]!r}")
    if status == 200 and shot.expected is not None and answer != shot.expected:
        tally.failures.append(f"{shot.kind}: another answer than when nobody else asked")
    if shot.path == "/forecast" and status != 405:
        json.loads(answer)
    if status == 429:
        time.sleep(random.random())


def fire(shot: Shot, port: int) -> tuple[int, bytes]:
    """Send a request, read the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(shot.method, shot.path, shot.body, shot.headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def rude(shot: Shot, port: int) -> None:
    """Clients that leave: after a request, in the middle of one, or without one."""
    head = b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(shot.body) + shot.body
    sent = {"hangs up": whole, "stops halfway": whole[:-9], "noise as HTTP": os.urandom(300) + b"\r\n\r\n"}
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(sent[shot.kind])


def resident(pid: int) -> float:
    """Memory that a process holds, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def judge_log(log: Path, tally: Tally) -> None:
    """Every line is JSON, and none reports a failure."""
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if record["level"] == "error" or record.get("status", 0) >= 500:
            tally.failures.append(f"the log says {line[:300]}")


def render(tally: Tally, seconds: float, clients: int, model: str) -> str:
    """The outcome as Markdown."""
    total = sum(tally.statuses.values())
    counts: Counter[int] = Counter()
    for (_, status), count in tally.statuses.items():
        counts[status] += count
    part = min(60.0, seconds / 2)
    first = [mib for moment, mib in tally.memory if moment <= part]
    last = [mib for moment, mib in tally.memory if moment >= seconds - part]
    before, after = statistics.median(first), statistics.median(last)
    if after > 1.1 * before:
        tally.failures.append(f"memory grew from {before:.0f} to {after:.0f} MiB")
    answered = sum(len(times) for times in tally.seconds.values())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "fastapi", "uvicorn", "pandas"))
    lines = [
        "# Soak of the HTTP service",
        "",
        f"`python benchmarks/soak.py --seconds {seconds:g} --clients {clients}` on {os.cpu_count()} cores "
        f"({platform.machine()}, {platform.system()}), Python {platform.python_version()}, {packages}, {model} model "
        "of the bundled sample, the load on the same machine, which did other work too.",
        "",
        f"{total:,} requests in {seconds:g} s, {answered:,} of them forecasts answered, which is "
        f"{answered / seconds:.1f} a second beside all the rest. Each answer was compared with the one that came when "
        "nobody else asked.",
        "",
        f"Resident memory, median: first {part:g} s {before:.0f} MiB, last {part:g} s {after:.0f} MiB, "
        f"peak {max(mib for _, mib in tally.memory):.0f} MiB.",
        "",
        f"**{'Failed' if tally.failures else 'Passed'}**: {len(tally.failures)} surprises.",
        *(f"- {text}" for text in tally.failures[:20]),
        "",
        "| good requests | answered | p50 s | p95 s | p99 s | longest s |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_latency(kind, times) for kind, times in sorted(tally.seconds.items())),
        "",
        "| status | requests |",
        "| --- | --- |",
        *(f"| {status or 'none: the client left'} | {count:,} |" for status, count in sorted(counts.items())),
        "",
    ]
    return "\n".join(lines)


def _latency(kind: str, times: Sequence[float]) -> str:
    ordered = sorted(times)
    quantiles = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99)]
    return f"| {kind} | {len(times):,} | {' | '.join(f'{value:.2f}' for value in [*quantiles, ordered[-1]])} |"


if __name__ == "__main__":
    typer.run(main)
