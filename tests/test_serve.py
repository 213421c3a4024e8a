"""The HTTP service: the same numbers as everywhere else, a status for every mistake, and no input brings it down."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines import data, serve, train
from pipelines.cli import app
from pipelines.http_models import Limits, Question
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.table import check_table, read_queries, read_table

SMALL = ["train.steps=10", "train.validate_every=10", "train.members=1", "train.workers=1"]
FAMILIES = ["filter", "latent_sde"]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Model:
    """A small trained model, its table as a file, and as rows for a request."""

    folder: Path
    table: Path
    rows: list[dict[str, Any]]

    def load(self) -> Predictor:
        return Predictor.load(self.folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("served")
    table = folder / "table.csv"
    spirals(40, 12, seed=3, missing=0.2).to_csv(table, index=False)
    cells = pd.read_csv(table).astype(object)
    rows = cells.where(cells.notna(), None).to_dict("records")
    for family in FAMILIES:
        found = data.load(table, horizon="1", family=family, overrides=SMALL)
        train.run(found, folder / family, train.start(found, folder / family), quiet=True)
    return {family: Model(folder / family, table, rows) for family in FAMILIES}


@pytest.fixture(scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of a tidy table with dates in local time."""
    folder = tmp_path_factory.mktemp("tidy")
    wide = spirals(40, 12, seed=3)
    wide["ds"] = (pd.Timestamp("2024-01-01") + pd.to_timedelta(wide["ds"], unit="D")).dt.round("s").astype(str)
    rows = wide.melt(["unique_id", "ds"], var_name="channel", value_name="value")
    rows.to_csv(folder / "table.csv", index=False)
    columns = {"channel_col": "channel", "value_col": "value", "timezone": "Europe/Paris"}
    found = data.load(folder / "table.csv", horizon="1d", family="last", columns=columns)
    train.run(found, folder / "last", train.start(found, folder / "last"), quiet=True)
    return Model(folder / "last", folder / "table.csv", rows.to_dict("records"))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        def refuse(text: str) -> Any:
            raise AssertionError(f"{text} is not JSON")

        return json.loads(self.body, parse_constant=refuse)

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.json()["findings"]}


@dataclass(frozen=True)
class Client:
    port: int

    def ask(
        self, path: str = "/forecast", body: Any = None, headers: Mapping[str, str] = JSON, method: str | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = json.dumps(body).encode() if isinstance(body, dict) else body
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, content, dict(headers), encode_chunked=not isinstance(content, bytes))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def rows(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        reply = self.ask(body=body)
        assert reply.status == 200, reply.body
        return reply.json()["forecast"]

    def raw(self, head: str, body: bytes = b"") -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            return connection.makefile("rb").read()


@contextmanager
def serving(predictor: Predictor, **options: Any) -> Iterator[Client]:
    limits = Limits(**options.pop("limits", {}))
    chosen = serve.Settings(limits=limits, **options)
    place = serve.listen("127.0.0.1", 0)
    server = serve.server(serve.application(predictor, chosen), chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield Client(place.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service did not end"


@pytest.fixture(scope="module")
def client(models: dict[str, Model]) -> Iterator[Client]:
    with serving(models["filter"].load()) as found:
        yield found


def eventually(true: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def same_bits(rows: list[dict[str, Any]], frame: pd.DataFrame) -> None:
    """Equal names, order and texts, and numbers that agree to the last bit."""
    assert [list(row) for row in rows] == [list(frame.columns)] * len(frame)
    for name in frame.columns:
        ours, theirs = [row[name] for row in rows], frame[name].tolist()
        if frame[name].dtype.kind == "f":
            ours, theirs = ([struct.pack("<d", value) for value in values] for values in (ours, theirs))
        assert ours == theirs, name


# The same numbers everywhere


@pytest.mark.parametrize("family", FAMILIES)
def test_command_line_library_mlflow_and_http_give_the_same_bits(
    family: str, models: dict[str, Model], tmp_path: Path
) -> None:
    import mlflow

    from pipelines import mlflow_model

    model, predictor = models[family], models[family].load()
    question = {"horizon": "1", "step": "0.25", "levels": [50.0, 80.0], "seed": 4}
    out = tmp_path / "f.parquet"
    command = ["forecast", model.folder, model.table, "--horizon", 1, "--step", 0.25, "--seed", 4, "--out", out]
    done = CliRunner().invoke(app, [str(word) for word in [*command, "--level", 50, "--level", 80]])
    assert done.exit_code == 0, done.output
    table = read_table(model.table, predictor.experiment.data)
    python = predictor.forecast(table, "1", "0.25", levels=[50.0, 80.0], seed=4)
    artifacts = {mlflow_model.ARTIFACT: str(model.folder)}
    code = [str(Path(serve.__file__).parent.with_name("tsde"))]
    mlflow.pyfunc.save_model(
        tmp_path / "flow", python_model=mlflow_model.__file__, artifacts=artifacts, code_paths=code,
        signature=mlflow_model.signature(["unique_id", "ds", "x", "y"]), pip_requirements=[],
    )  # fmt: skip
    params = {"horizon": "1", "step": "0.25", "level": [50.0, 80.0], "seed": 4}
    flow = mlflow.pyfunc.load_model(str(tmp_path / "flow")).predict(pd.read_csv(model.table), params=params)
    with serving(predictor) as client:
        rows = client.rows({"rows": model.rows, **question})
    assert len(rows) == 40 * 4 * 2
    for frame in (pd.read_parquet(out), python, flow):
        same_bits(rows, frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_times_and_samples_are_those_of_the_command_line(family: str, models: dict[str, Model], tmp_path: Path) -> None:
    model = models[family]
    times = [("spiral-0003", "2.50"), ("unheard-of", "1"), ("spiral-0000", "1e2"), ("spiral-0039", "3.25")] * 2
    pd.DataFrame(times, columns=["unique_id", "ds"]).to_csv(tmp_path / "t.csv", index=False)
    command = ["forecast", model.folder, model.table, "--times", tmp_path / "t.csv", "--out", tmp_path / "f.parquet"]
    command += ["--samples", 5, "--samples-out", tmp_path / "s.parquet", "--seed", 7]
    assert CliRunner().invoke(app, [str(word) for word in command]).exit_code == 0
    asked = [{"unique_id": name, "ds": time} for name, time in times]
    with serving(model.load()) as client:
        rows = client.rows({"rows": model.rows, "times": asked, "samples": 5, "seed": 7})
    drawn = [value for row in rows for value in row.pop("tsde-samples")]
    same_bits(rows, pd.read_parquet(tmp_path / "f.parquet"))
    assert drawn == pd.read_parquet(tmp_path / "s.parquet")["value"].tolist()
    assert {"no_history", "beyond_horizon"} <= {row["status"] for row in rows}


def test_a_forecast_does_not_depend_on_its_neighbours_or_on_who_else_asks(models: dict[str, Model]) -> None:
    model = models["latent_sde"]
    names = sorted({row["unique_id"] for row in model.rows})
    with serving(model.load(), limits={"queue": 64}) as client:
        whole = client.rows({"rows": model.rows, "horizon": 1, "step": 0.5, "samples": 2})

        def alone(name: str) -> list[dict[str, Any]]:
            own = [row for row in reversed(model.rows) if row["unique_id"] == name]
            return client.rows({"rows": own, "horizon": 1, "step": 0.5, "samples": 2})

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(alone, names[:16]))
    assert [row for part in parts for row in part] == whole[: len(parts) * 4]


def test_pieces_of_the_work_change_nothing(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["filter"]
    ids = sorted({row["unique_id"] for row in model.rows}, reverse=True)
    times = [{"unique_id": name, "ds": moment} for moment in (3, 2.5) for name in (*ids, "unheard-of")]
    body = {"rows": model.rows, "times": times, "samples": 3}
    with serving(model.load()) as client:
        whole = client.ask(body=body).body
        monkeypatch.setattr("pipelines.http_service._PIECE", 50)
        assert client.ask(body=body).body == whole


def test_ids_are_the_names_that_were_sent(client: Client) -> None:
    ids = ["007", 7, 7.5, 12345678901234567890123, 9007199254740993, "NA", "a\0b", "é\u202e", " "]
    rows = [{"unique_id": name, "ds": 1, "x": 1.0, "y": None} for name in ids[:-1]]
    found = client.rows({"rows": rows})
    assert {row["unique_id"] for row in found} == {
        "007", "7", "7.5", "12345678901234567890123", "9007199254740993", "NA", "a\0b", "é\u202e"
    }  # fmt: skip
    assert client.ask(body={"rows": [{**rows[0], "unique_id": ids[-1]}]}).codes == {"E-ID-BLANK"}


@pytest.mark.parametrize(("known", "asked"), [([7.0, "a"], [7.0]), ([7.0, 8.0], [7, "8.0"]), ([7, 8], [7.0, "a"])])
def test_a_number_names_the_same_series_whatever_stands_beside_it(
    known: list[Any], asked: list[Any], client: Client
) -> None:
    rows = [{**GOOD, "unique_id": name} for name in known]
    found = client.rows({"rows": rows, "times": [{"unique_id": name, "ds": 2} for name in asked]})
    assert {row["status"] for row in found if row["unique_id"] == "7"} == {"ok"}


def test_tidy_rows_with_local_times_are_read_as_the_table_is(tidy: Model) -> None:
    predictor = tidy.load()
    table = read_table(tidy.table, predictor.experiment.data)
    with serving(predictor) as client:
        same_bits(
            client.rows({"rows": tidy.rows, "horizon": "1d", "step": "6h"}), predictor.forecast(table, "1d", "6h")
        )


# What is refused, and how


GOOD = {"unique_id": "a", "ds": 1, "x": 1.0, "y": 2.0}


def test_rows_are_judged_by_the_table_contract(models: dict[str, Model], client: Client) -> None:
    predictor = models["filter"].load()
    for rows in (
        [{**GOOD, "y": "many"}, {**GOOD, "ds": None}, GOOD, GOOD],
        [{**GOOD, "ds": "2024-01-01"}],
        [{"unique_id": "a", "ds": 1, "x": 1.0}],
        [{**GOOD, "y": "1,5"}, {**GOOD, "unique_id": None}],
        [{**GOOD, "y": True}],
        [{**GOOD, " x ": 1.0}],
        [{**GOOD, "": 1.0}],
    ):
        reply = client.ask(body={"rows": rows})
        schema, expected = predictor.experiment.data, {"expected_channels": predictor.channels}
        findings = check_table(pd.DataFrame(rows), schema, **expected, expected_clock=predictor.clock)
        wanted = json.loads(json.dumps([asdict(f) for f in sorted(findings, key=lambda f: f.severity)]))
        assert reply.status == 422
        assert [(f["code"], f["rows"], f["count"]) for f in reply.json()["findings"]] == [
            (f["code"], f["rows"], f["count"]) for f in wanted
        ]


def test_what_reading_did_is_told(client: Client) -> None:
    reply = client.ask(body={"rows": [{**GOOD, "ds": 2}, {**GOOD, "note": "tired"}]})
    assert reply.status == 200
    assert "sorted" in " ".join(reply.json()["notes"]) and "'note'" in " ".join(reply.json()["notes"])


@pytest.mark.parametrize(
    ("status", "code", "body"),
    [
        (400, "E-JSON", b""),
        (400, "E-JSON", b"{"),
        (400, "E-JSON", b'\xef\xbb\xbf{"rows": []}'),
        (400, "E-JSON", b'{"rows": [{"unique_id": "\xff"}]}'),
        (400, "E-JSON", '{"rows": []}'.encode("utf-16")),
        (400, "E-JSON", b'{"rows": [{"unique_id": "a", "ds": 1, "x": NaN, "y": 1}]}'),
        (400, "E-JSON", b'{"rows": [{"unique_id": "a", "ds": 1, "x": -Infinity, "y": 1}]}'),
        (422, "E-VALUE", b'{"rows": [{"unique_id": "a", "ds": 1, "x": 1e400, "y": 1}]}'),
        (422, "E-VALUE", b'{"rows": [{"unique_id": "a", "ds": 1, "x": 1' + 400 * b"0" + b', "y": 1}]}'),
        (422, "E-FIELD", {"rows": [GOOD], "horizon": 10**400}),
        (422, "E-QUESTION", b'{"rows": [{"unique_id": "a", "ds": 1, "x": 1, "y": 1}], "horizon": 1e400}'),
        (422, "E-FIELD", {"rows": [GOOD], "levels": [10**400]}),
        (422, "E-FIELD", {"rows": [1] * 1_000_000}),
        (422, "E-FIELD", {"rows": [GOOD], "levels": ["a"] * 1_000_000}),
        (422, "E-FIELD", {f"f{i}": 1 for i in range(200_000)}),
        (400, "E-JSON", b'{"rows":[{' + b",".join(b'"%d":1' % i for i in range(100_000)) + b',"99999":1}]}'),
        (400, "E-JSON", b'{"rows": [], "seed": 1' + 100_000 * b"0" + b"}"),
        (400, "E-JSON", b'{"rows": [], "rows": []}'),
        (400, "E-JSON", b'{"rows": [{"unique_id": "a", "ds": 1, "x": 1, "x": 2, "y": 1}]}'),
        (400, "E-JSON", b'{"rows": [{"unique_id": "\\ud800", "ds": 1, "x": 1, "y": 1}]}'),
        (400, "E-JSON", b'{"rows": [{"\\udfff": "a", "ds": 1, "x": 1, "y": 1}]}'),
        (400, "E-JSON", 200_000 * b"[" + 200_000 * b"]"),
        (400, "E-JSON", 200_000 * b'{"a":'),
        (400, "E-JSON", b"{'rows': []}"),
        (400, "E-JSON", b'{"rows": [],}'),
        (400, "E-JSON", b'{"rows": []} {}'),
        (422, "E-FIELD", b"[]"),
        (422, "E-FIELD", b"null"),
        (422, "E-FIELD", b'"rows"'),
        (422, "E-FIELD", b"{}"),
        (422, "E-FIELD", {"rows": None}),
        (422, "E-FIELD", {"rows": [GOOD], "horizn": 1}),
        (422, "E-FIELD", {"rows": [GOOD, 1]}),
        (422, "E-FIELD", {"rows": {"unique_id": ["a"]}}),
        (422, "E-FIELD", {"rows": [{**GOOD, "x": [1.0]}]}),
        (422, "E-FIELD", {"rows": [{**GOOD, "note": {"x": 1.0}}]}),
        (422, "E-FIELD", {"rows": [GOOD], "seed": "1"}),
        (422, "E-FIELD", {"rows": [GOOD], "seed": 2**63}),
        (422, "E-FIELD", {"rows": [GOOD], "seed": 1.5}),
        (422, "E-FIELD", {"rows": [GOOD], "seed": True}),
        (422, "E-FIELD", {"rows": [GOOD], "samples": -1}),
        (422, "E-FIELD", {"rows": [GOOD], "levels": [100]}),
        (422, "E-FIELD", {"rows": [GOOD], "levels": ["80"]}),
        (422, "E-FIELD", {"rows": [GOOD], "levels": [50.0] * 51}),
        (422, "E-FIELD", {"rows": [GOOD], "horizon": True}),
        (422, "E-FIELD", {"rows": [GOOD], "horizon": 1, "times": [{"unique_id": "a", "ds": 1}]}),
        (422, "E-FIELD", {"rows": [GOOD], "timezone": "Mars/Olympus"}),
        (422, "E-FIELD", {"rows": [GOOD], "timezone": "../../etc/passwd"}),
        (422, "E-FIELD", {"rows": [GOOD], "time_col": "unique_id"}),
        (422, "E-FIELD", {"rows": [GOOD], "id_col": "x"}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": 0}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": -1}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": "30d"}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": "soon"}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": 1, "step": 2}),
        (422, "E-QUESTION", {"rows": [GOOD], "horizon": 1, "step": 0}),
        (422, "E-TIME-UNREADABLE", {"rows": [{**GOOD, "ds": 1e308}], "horizon": 1.7e308}),
        (422, "E-EMPTY", {"rows": []}),
        (422, "E-EMPTY", {"rows": [{}]}),
        (422, "E-EMPTY", {"rows": [GOOD], "times": []}),
        (422, "E-COLUMN-MISSING", {"rows": [GOOD], "times": [{"id": "a", "ds": 1}]}),
        (422, "E-COLUMN-MISSING", {"rows": [GOOD], "id_col": "patient"}),
        (422, "E-TIME-KIND", {"rows": [GOOD], "times": [{"unique_id": "a", "ds": "2024-01-01"}]}),
        (422, "E-DUPLICATE", {"rows": [GOOD, GOOD]}),
        (422, "E-QUESTION", {"rows": [GOOD], "levels": [80, 80.00000001]}),
        (422, "E-QUESTION", {"rows": [GOOD], "levels": [99.99999999]}),
        (413, "E-TOO-LARGE", {"rows": [GOOD], "horizon": 1e300, "step": 1e-300}),
        (413, "E-TOO-LARGE", {"rows": [GOOD], "horizon": 1, "step": 1e-9}),
        (413, "E-TOO-LARGE", {"rows": [GOOD], "samples": 10**12}),
        (413, "E-TOO-LARGE", {"rows": [{f"c{i}": 1 for i in range(2000)}]}),
    ],
)  # fmt: skip
def test_every_mistake_has_its_status(status: int, code: str, body: Any, client: Client) -> None:
    reply = client.ask(body=body)
    assert (reply.status, reply.codes) == (status, {code}), reply.body[:300]
    assert reply.headers["content-type"] == "application/json"
    assert all(0 < len(finding["message"]) < 1000 for finding in reply.json()["findings"])
    assert client.ask("/healthz").status == 200


@pytest.mark.parametrize(
    ("status", "code", "path", "method", "headers"),
    [
        (415, "E-CONTENT-TYPE", "/forecast", "POST", {}),
        (415, "E-CONTENT-TYPE", "/forecast", "POST", {"Content-Type": "text/csv"}),
        (415, "E-CONTENT-TYPE", "/forecast", "POST", {"Content-Type": "application/json; charset=latin-1"}),
        (415, "E-CONTENT-TYPE", "/forecast", "POST", {**JSON, "Content-Encoding": "gzip"}),
        (400, "E-HOST", "/forecast", "POST", {**JSON, "Host": "evil.example"}),
        (400, "E-HOST", "/forecast", "POST", {**JSON, "Host": "localhost.evil.example"}),
        (400, "E-HOST", "/healthz", "GET", {"Host": ""}),
        (400, "E-HOST", "/healthz", "GET", {"Host": "[::1"}),
        (404, "E-HTTP", "/", "GET", {}),
        (404, "E-HTTP", "/forecast/", "POST", JSON),
        (404, "E-HTTP", "/../../etc/passwd", "GET", {}),
        (404, "E-HTTP", "/%00%ff", "GET", {}),
        (404, "E-HTTP", "/docs", "GET", {}),
        (405, "E-HTTP", "/forecast", "GET", {}),
        (405, "E-HTTP", "/forecast", "DELETE", {}),
        (405, "E-HTTP", "/metadata", "POST", JSON),
        (405, "E-HTTP", "/metadata", "BREW", {}),
    ],
)
def test_every_wrong_turn_has_its_status(
    status: int, code: str, path: str, method: str, headers: dict[str, str], client: Client
) -> None:
    body = b'{"rows": []}' if method == "POST" else b""
    reply = client.ask(path, body, headers, method)
    assert (reply.status, reply.codes) == (status, {code})


def test_known_hosts_are_answered(client: Client, models: dict[str, Model]) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8000"):
        assert client.ask("/healthz", headers={"Host": host}).status == 200
    with serving(models["filter"].load(), hosts=("tsde.example",)) as named:
        assert named.ask("/healthz", headers={"Host": "tsde.example:443"}).status == 200
        assert named.ask("/healthz").codes == {"E-HOST"}


def test_a_refusal_is_heard_by_a_client_that_still_sends(models: dict[str, Model]) -> None:
    with serving(models["filter"].load(), limits={"body": 5000}, token="correct-horse-battery") as client:
        allowed = JSON | {"Authorization": "Bearer correct-horse-battery"}
        for _ in range(5):
            assert client.ask(body=b" " * 2**23).codes == {"E-TOKEN"}
            assert client.ask(body=b" " * 2**23, headers=allowed).codes == {"E-TOO-LARGE"}
            assert client.ask(body=b" " * 2**22, headers=allowed | {"Content-Type": "text/csv"}).status == 415
        head = "".join(f"\n{name}: {text}" for name, text in {**allowed, "Host": "localhost"}.items())
        head = f"POST /forecast HTTP/1.1{head}\nExpect: 100-continue\nContent-Length: 5001"
        assert client.raw(head).startswith(b"HTTP/1.1 413 ")  # and not 100: nobody wants to read it


def test_a_body_is_counted_as_it_arrives(models: dict[str, Model]) -> None:
    with serving(models["filter"].load(), limits={"body": 5000, "reading": 0.5}) as client:
        assert client.ask(body=iter([b" " * 3000] * 2)).codes == {"E-TOO-LARGE"}
        assert client.ask(body=b" " * 5001).status == 413
        post = "POST /forecast HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: "
        assert client.raw(post + "1000000000000", b"{").startswith(b"HTTP/1.1 413 ")
        assert client.raw(post + "100", b"{").startswith(b"HTTP/1.1 408 ")
        for absurd in ("-1", "1e9", "many", "1, 2"):
            assert client.raw(post + absurd, b"{}").startswith(b"HTTP/1.1 400 ")
        assert client.ask(body={"rows": [GOOD]}).status == 200


@pytest.mark.parametrize(
    ("limit", "body"),
    [
        ({"rows": 2}, {"rows": [{**GOOD, "ds": i} for i in range(3)]}),
        ({"series": 2}, {"rows": [{**GOOD, "unique_id": i} for i in range(3)]}),
        ({"columns": 4}, {"rows": [{**GOOD, "z": 1}]}),
        ({"cells": 7}, {"rows": [GOOD, {**GOOD, "ds": 2}]}),
        ({"cells": 7}, {"rows": [GOOD, {}]}),
        ({"times": 2}, {"rows": [GOOD], "horizon": 3, "step": 1}),
        ({"times": 2}, {"rows": [GOOD], "times": [{"unique_id": "a", "ds": i} for i in range(3)]}),
        ({"samples": 2}, {"rows": [GOOD], "samples": 3}),
        ({"values": 10}, {"rows": [GOOD], "horizon": 3, "step": 1}),
    ],
)
def test_a_request_has_limits(limit: dict[str, int], body: dict[str, Any], models: dict[str, Model]) -> None:
    with serving(models["filter"].load(), limits=limit) as client:
        reply = client.ask(body=body)
        assert (reply.status, reply.codes) == (413, {"E-TOO-LARGE"})


def test_a_token_is_asked_for(models: dict[str, Model]) -> None:
    token = "correct-horse-battery"
    with serving(models["filter"].load(), token=token) as client:
        for given in (
            {},
            {"Authorization": token},
            {"Authorization": f"Bearer {token}x"},
            {"Authorization": "Bearer "},
        ):
            for path in ("/forecast", "/metadata", "/openapi.json", "/nowhere"):
                reply = client.ask(path, headers=given)
                assert (reply.status, reply.codes) == (401, {"E-TOKEN"})
                assert reply.headers["www-authenticate"] == "Bearer"
        known = {**JSON, "Authorization": f"bearer {token}"}
        assert client.ask(body={"rows": [GOOD]}, headers=known).status == 200
        assert client.ask("/metadata", headers=known).status == 200
        assert client.ask("/healthz").status == client.ask("/readyz").status == 200


def test_what_it_is_can_be_asked(client: Client, models: dict[str, Model]) -> None:
    about = client.ask("/metadata").json()
    assert about["channels"] == ["x", "y"] and about["clock"]["kind"] == "number" and about["horizon"] == 1
    assert about["limits"] == Limits().model_dump() and about["card"]["data"]["series"] == 40
    described = client.ask("/openapi.json").json()
    assert set(described["paths"]) == {"/forecast", "/metadata", "/healthz", "/readyz"}
    body = described["paths"]["/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(Question.model_fields) and body["additionalProperties"] is False
    reply = client.ask("/readyz")
    assert reply.json() == {"status": "ok"} and len(reply.headers["x-request-id"]) == 32


def test_the_end_of_the_calendar_is_refused_not_guessed(tidy: Model) -> None:
    row = {"unique_id": "a", "ds": "9999-12-31T23:59:59Z", "channel": "x", "value": 1}
    with serving(tidy.load()) as client:
        assert client.ask(body={"rows": [row, row]}).codes == {"E-DUPLICATE", "W-TIME-FAR"}
        assert client.ask(body={"rows": [row]}).codes == {"E-QUESTION"}
        assert client.ask(body={"rows": [{**row, "ds": "2024-01-01"}], "horizon": "3000000d"}).codes == {"E-QUESTION"}
        known = client.rows({"rows": [{**row, "ds": "2024-01-01"}], "times": [{"unique_id": "a", "ds": row["ds"]}]})
        assert {found["ds"] for found in known} == {row["ds"]} and {x["status"] for x in known} == {"beyond_horizon"}


def test_the_page_on_operations_knows_every_limit() -> None:
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    told = {
        name.strip(" `"): float(value)
        for names, values in lines
        for name, value in zip(names.split(","), values.split(","), strict=False)
        if value.strip().isdigit()
    }
    assert told == Limits().model_dump()


# Any input at all

cells = st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(max_size=8)
values = st.recursive(cells, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
names = st.sampled_from(["unique_id", "ds", "x", "y"]) | st.text(max_size=3)
times = (
    st.floats() | st.integers() | st.sampled_from(["1", "2024-01-01", "9999-12-31T23:59:59Z", "24:00", "1e309", "-0"])
)
rows = st.lists(
    st.fixed_dictionaries({"unique_id": cells, "ds": times, "x": cells, "y": cells}) | st.dictionaries(names, cells),
    max_size=4,
)
questions = st.fixed_dictionaries(
    {"rows": rows | values},
    optional={
        "horizon": st.floats(0.1, 3) | values, "step": st.floats(0.1, 3) | values, "times": rows | values,
        "levels": st.lists(st.floats(-1, 101), max_size=3) | values, "seed": st.integers() | values,
        "samples": st.integers(0, 3) | values, "duplicates": st.sampled_from(["mean", "first", "error"]) | values,
        "timezone": st.sampled_from(["Europe/Paris", "UTC"]) | values, "dayfirst": st.booleans() | values,
        "id_col": names | values, "time_col": names | values,
    },
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | values.map(json.dumps) | questions.map(json.dumps))
def test_no_body_brings_it_down(client: Client, body: str | bytes) -> None:
    answered(client, body.encode() if isinstance(body, str) else body)


dates = st.sampled_from(
    ["2024-01-01", "2024-01-02T03:04", "2024-03-31T02:30", "2024-10-27T02:30", "2024-01-01T00:00Z", "01/02/2024",
     "13/02/2024", "0001-01-01", "9999-12-31T23:59:59Z", "2024-02-30", "2024-01-01T00:00:00.1234567+25:00", 5, None]
)  # fmt: skip
long = st.sampled_from(["1d", "90min", "1e-9s", "3e6d", "1e300d", 1, "-1d", "1 fortnight"])
tidy_rows = st.lists(
    st.fixed_dictionaries(
        {"unique_id": st.sampled_from(["a", "b", 1]), "ds": dates, "channel": st.sampled_from("xyz"), "value": cells}
    ),
    max_size=4,
)
tidy_questions = st.fixed_dictionaries(
    {"rows": tidy_rows},
    optional={
        "horizon": long, "step": long, "times": tidy_rows, "samples": st.integers(0, 2), "dayfirst": st.booleans(),
        "duplicates": st.sampled_from(["mean", "first", "last"]), "timezone": st.sampled_from(["UTC", "Asia/Kolkata"]),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def tidy_client(tidy: Model) -> Iterator[Client]:
    with serving(tidy.load()) as found:
        yield found


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(tidy_questions)
def test_no_date_brings_it_down(tidy_client: Client, body: dict[str, Any]) -> None:
    answered(tidy_client, json.dumps(body).encode())


def answered(client: Client, body: bytes) -> None:
    reply = client.ask(body=body)
    assert reply.status in (200, 400, 413, 422), reply.body
    found = reply.json()
    assert found["forecast"] if reply.status == 200 else found["findings"]


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(client: Client, noise: bytes) -> None:
    for head in (b"", b"POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
            connection.sendall(head + noise)
            connection.shutdown(socket.SHUT_WR)
            assert not connection.makefile("rb").read().startswith(b"HTTP/1.1 5")
    assert client.ask("/healthz").status == 200


# Load, time and the end


@dataclass
class Gate:
    """A predictor's `answer` that waits until it may go on, and counts."""

    predictor: Predictor
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.open, self.calls, self.true_answer = threading.Event(), 0, self.predictor.answer
        self.monkeypatch.setattr(self.predictor, "answer", self.answer)

    def answer(self, *arguments: Any) -> Any:
        self.calls += 1
        self.open.wait(30)
        return self.true_answer(*arguments)


@pytest.fixture
def gate(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(models["filter"].load(), monkeypatch)


def insist(client: Client, rows: list[dict[str, Any]]) -> Reply:
    """Ask until accepted, and wait for the answer."""
    while (reply := client.ask(body={"rows": rows})).status == 429:
        time.sleep(0.01)
    return reply


def full(client: Client) -> bool:
    """Whether as many requests as may wait were accepted: else even a bad one is, and read at once."""
    return client.ask(body={"rows": []}).status == 429


def test_too_many_requests_are_told_to_come_again(gate: Gate) -> None:
    with serving(gate.predictor, limits={"queue": 3}) as client, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(insist, client, [GOOD]) for _ in range(3)]
        eventually(lambda: full(client))
        busy = [client.ask(body={"rows": [GOOD]}) for _ in range(3)]
        assert client.ask("/healthz").status == client.ask("/readyz").status == 200
        gate.open.set()
        assert [reply.result().status for reply in accepted] == [200] * 3
        assert client.ask(body={"rows": [GOOD]}).status == 200
    for reply in busy:
        assert (reply.status, reply.codes) == (429, {"E-BUSY"}) and int(reply.headers["retry-after"]) > 0


def test_a_request_that_takes_too_long_is_given_up(gate: Gate) -> None:
    with serving(gate.predictor, limits={"timeout": 1}) as client:
        reply = client.ask(body={"rows": [GOOD]})
        assert (reply.status, reply.codes) == (503, {"E-TIMEOUT"})
        assert client.ask(body={"rows": [GOOD]}).status == 503  # the first still holds the thread
        eventually(lambda: client.ask("/readyz").status == 503)
        gate.open.set()
        eventually(lambda: client.ask("/readyz").status == 200)
        assert gate.calls == 1, "a request that was over before its turn must not be computed"
        eventually(lambda: client.ask(body={"rows": [GOOD]}).status == 200)


@pytest.mark.parametrize("leaves", [True, False], ids=["client gone", "out of time"])
def test_nothing_is_computed_for_nobody(leaves: bool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.http_service._PIECE", 1)  # every series is a piece
    with serving(gate.predictor, limits={"timeout": 60 if leaves else 1, "queue": 1}) as client:
        body = json.dumps({"rows": [{**GOOD, "unique_id": i} for i in range(300)]}).encode()
        head = "POST /forecast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: gate.calls == 1)
            assert full(client)
            if not leaves:
                assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 503 ")
        eventually(lambda: not full(client))
        gate.open.set()
        eventually(lambda: client.ask(body={"rows": [GOOD]}).status == 200)
    assert gate.calls < 100


@contextmanager
def process(model: Model, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], Client, Path]]:
    """A service as users start it, its standard error in a file."""
    log = model.folder.with_name("log")
    script = "from pipelines.cli import app; app()"
    command = [sys.executable, "-c", script, "serve", str(model.folder), "--port", "0", *options]
    with log.open("wb") as file:
        started = subprocess.Popen(command, stderr=file, stdout=subprocess.PIPE, env=os.environ | environment)
    try:
        eventually(lambda: b"startup complete" in log.read_bytes() or started.poll() is not None, 60)
        first = json.loads(log.read_text().splitlines()[0])
        yield started, Client(first["port"]), log
    finally:
        started.kill()
        started.wait()


def test_accepted_requests_are_finished_before_the_end(models: dict[str, Model]) -> None:
    rows = [{**GOOD, "unique_id": i} for i in range(1000)]
    with process(models["latent_sde"], "--limit", "queue=2") as (started, client, log), ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(insist, client, rows) for _ in range(2)]
        eventually(lambda: full(client))
        assert not any(reply.done() for reply in accepted), "the request is too short for this test"
        started.send_signal(signal.SIGTERM)
        assert [len(reply.result().json()["forecast"]) for reply in accepted] == [2000, 2000]
        assert started.wait(30) == 0
        with pytest.raises(OSError):
            client.ask("/healthz")
        assert "Finished server process" in log.read_text()


def test_a_second_interrupt_gives_up_what_was_accepted(models: dict[str, Model]) -> None:
    rows = [{**GOOD, "unique_id": i} for i in range(9000)]
    with process(models["latent_sde"], "--limit", "queue=1") as (started, client, log), ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(insist, client, rows)
        eventually(lambda: full(client))
        started.send_signal(signal.SIGINT)
        eventually(lambda: "Waiting for connections" in log.read_text())
        assert not accepted.done(), "the request is too short for this test"
        started.send_signal(signal.SIGINT)
        assert accepted.result().codes == {"E-ENDING"}
        assert started.wait(30) == 130


def test_the_log_is_json_and_holds_no_data(models: dict[str, Model]) -> None:
    secret = {"unique_id": "Jane Roe", "ds": 1234.5, "x": 98765.25, "y": "Roe-many"}
    token = "correct-horse-battery"
    known = {**JSON, "Authorization": f"Bearer {token}"}
    with process(models["filter"], TSDE_TOKEN=token) as (started, client, log):
        for body in ({"rows": [secret]}, {"rows": [{**secret, "y": None}]}, {"Jane Roe": 1}, b"Jane Roe"):
            client.ask(body=body, headers=known)
            client.ask("/Jane%20Roe?x=98765.25", body, known | {"User-Agent": "Jane Roe"})
            client.ask(body=body, headers={**JSON, "Authorization": "Bearer Jane Roe 98765.25"})
        client.raw("Jane Roe\nHost: Jane Roe")
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 130
        assert started.stdout is not None and started.stdout.read() == b""
        text = log.read_text()
    *lines, last = text.splitlines()
    assert last == "interrupted"
    found = [json.loads(line) for line in lines]
    assert [line["status"] for line in found if line["event"] == "request"].count(200) == 1
    assert {"id", "path", "seconds", "series", "rows"} <= set(next(x for x in found if x.get("status") == 200))
    for word in ("Jane", "Roe", "98765", "1234.5", token):
        assert word not in text


def test_a_mistake_of_ours_is_told_without_data(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*arguments: Any) -> Any:
        raise ZeroDivisionError("Jane Roe")

    gate.monkeypatch.setattr(gate.predictor, "answer", fails)
    with serving(gate.predictor) as client:
        reply = client.ask(body={"rows": [GOOD]})
        assert (reply.status, reply.codes) == (500, {"E-INTERNAL"})
    lines = [serve.JsonLines().format(record) for record in caplog.records]
    failure = next(json.loads(line) for line in lines if '"failure"' in line)
    assert failure["error"] == "ZeroDivisionError" and failure["id"] == reply.headers["x-request-id"]
    assert "test_serve.py" in failure["at"][-1] and "Jane" not in "".join(lines)


@pytest.mark.parametrize(
    ("code", "arguments", "environment", "message"),
    [
        (2, "{model} --port {taken}", {}, "cannot listen"),
        (2, "{model} --host 203.0.113.1 --port 0", {}, "cannot listen"),
        (2, "{model} --host=", {}, "expected an address"),
        (2, "{model} --allowed-host tsde.example:8443", {}, "without scheme and port"),
        (2, "{model} --allowed-host http://tsde.example", {}, "without scheme and port"),
        (2, "{model} --limit rows=0", {}, "rows"),
        (2, "{model} --limit rowz=1", {}, "the names are"),
        (2, "{model} --limit rows", {}, "rows"),
        (2, "{model}", {"TSDE_TOKEN": ""}, "16 ASCII"),
        (2, "{model}", {"TSDE_TOKEN": "short"}, "secrets"),
        (2, "{model} --token-file {token}", {"TSDE_TOKEN": "correct-horse-battery"}, "leave out one"),
        (66, "{model} --token-file {token}.not", {}, "token"),
        (66, "{model}.not", {}, "does not exist"),
    ],
)
def test_a_service_that_cannot_start_says_why(
    code: int, arguments: str, environment: dict[str, str], message: str,
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "token").write_text("correct-horse-battery\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with serve.listen("127.0.0.1", 0) as taken:
        places = {"model": models["filter"].folder, "taken": taken.getsockname()[1], "token": tmp_path / "token"}
        result = CliRunner().invoke(app, ["serve", *arguments.format(**places).split()])
    assert result.exit_code == code, result.output
    assert message in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")


def test_a_token_may_stand_in_a_file_and_hosts_have_names(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse-battery\n")
    chosen = serve.Settings.of(
        "192.0.2.7", 80, ["tsde.example", "[2001:DB8::1]"], tmp_path / "token", ["rows=7", "timeout=1.5"]
    )
    assert chosen.token == "correct-horse-battery" and (chosen.limits.rows, chosen.limits.timeout) == (7, 1.5)
    assert set(chosen.hosts) == {"localhost", "127.0.0.1", "::1", "192.0.2.7", "tsde.example", "2001:db8::1"}
    assert serve.Settings.of("0.0.0.0", 80, [], None, []).hosts == serve.LOOPBACK
    assert serve.Settings().host == "127.0.0.1"


def test_explicit_times_are_those_of_the_library(models: dict[str, Model], client: Client) -> None:
    predictor = models["filter"].load()
    asked = pd.DataFrame({"unique_id": ["spiral-0001", "spiral-0000"], "ds": [3.5, 2.25]})
    table = read_table(models["filter"].table, predictor.experiment.data)
    frame = predictor.forecast(table, queries=read_queries(asked, predictor.experiment.data, predictor.clock))
    same_bits(client.rows({"rows": models["filter"].rows, "times": asked.to_dict("records")}), frame)


def test_numbers_that_do_not_exist_are_null() -> None:
    from pipelines.http_models import Forecast

    frame = pd.DataFrame({"tsde": [1.0, np.nan, np.inf], "status": ["ok", "ok", "ok"]})
    found = json.loads(Forecast(frame, np.array([[np.nan], [1.0], [2.0]]), ("é",)).encode())
    assert [row["tsde"] for row in found["forecast"]] == [1.0, None, None]
    assert [row["tsde-samples"] for row in found["forecast"]] == [[None], [1.0], [2.0]] and found["notes"] == ["é"]


def test_warnings_and_stray_errors_are_logged_without_their_text() -> None:
    import logging

    def line(logger: str, text: str) -> str:
        return serve.JsonLines().format(logging.LogRecord(logger, logging.WARNING, "", 0, "%s", (text,), None))

    warning = json.loads(line("py.warnings", "/a/b.py:12: RuntimeWarning: overflow in 98765.25\n  y = x * 2\n"))
    assert warning["event"] == "/a/b.py:12: RuntimeWarning" and warning["level"] == "warning"
    assert (
        json.loads(line("asyncio", "never retrieved\nfuture: <Task exception='Jane Roe'>"))["event"]
        == "never retrieved"
    )
