"""Saved predictors and datasets with the right digests and the wrong contents: one sentence each, never a number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, save

from pipelines import data, ingest
from tsde.config import load_experiment
from tsde.errors import ArtifactError
from tsde.fitting import fit_predictor
from tsde.predictor import Predictor
from tsde.synthetic import spirals
from tsde.table import read_table

SMALL = [
    "train.steps=1",
    "train.members=2",
    "train.workers=1",
    "model.modes=4",
    "model.width=8",
    "model.horizon_modes=3",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    table = read_table(spirals(20, 10, seed=1))
    predictor = fit_predictor(table, load_experiment(None, [*SMALL, "windows.held_out=20"], horizon=1)).predictor
    predictor.card = {"data": {}}
    predictor.save(folder)
    return folder


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file and its digest in the manifest."""
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def about(**changes: Any) -> tuple[str, Callable[[bytes], bytes]]:
    return "predictor.json", lambda old: json.dumps(json.loads(old) | changes).encode()


def scaler(**changes: Any) -> tuple[str, Callable[[bytes], bytes]]:
    def change(old: bytes) -> bytes:
        found = json.loads(old)
        return json.dumps(found | {"scaler": found["scaler"] | changes}).encode()

    return "predictor.json", change


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> tuple[str, Callable[[bytes], bytes]]:
    def rewritten(old: bytes) -> bytes:
        found = load(old)
        change(found)
        return save(found)

    return f"{file}.safetensors", rewritten


def config(**changes: Any) -> tuple[str, Callable[[bytes], bytes]]:
    return "experiment.yaml", lambda old: yaml.safe_dump(yaml.safe_load(old) | changes).encode()


def text(name: str, content: bytes) -> tuple[str, Callable[[bytes], bytes]]:
    return name, lambda old: content


def first(found: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in sorted(found.items()) if value.ndim == 2)


UNSOUND: dict[str, tuple[tuple[str, Callable[[bytes], bytes]], str]] = {
    "NaN weight": (tensors("weights", lambda t: t[first(t)].view(-1)[0].fill_(math.nan)), "finite weights"),
    "infinite weight": (tensors("weights", lambda t: t[first(t)].view(-1)[0].fill_(-math.inf)), "finite weights"),
    "transposed weight": (tensors("weights", lambda t: t.update({first(t): torch.zeros(3, 1)})), "size mismatch"),
    "missing weight": (tensors("weights", lambda t: t.pop(first(t))), "Missing key"),
    "extra weight": (tensors("weights", lambda t: t.update({"0/extra": torch.ones(2)})), "Unexpected key"),
    "extra member": (
        tensors("weights", lambda t: t.update({"2/x": torch.ones(2)})),
        "weights of 2 members, found .* 3",
    ),
    "member without a number": (tensors("weights", lambda t: t.update({"x/x": torch.ones(2)})), "members"),
    "more members": (about(members=3), "weights of 3 members"),
    "a billion members": (about(members=10**9), "members"),
    "no members": (about(members=0), "members"),
    "members of text": (about(members="two"), "members"),
    "NaN calibration": (tensors("calibration", lambda t: t["shift"].fill_(math.nan)), "finite numbers"),
    "calibration of a channel too many": (
        tensors("calibration", lambda t: t.update(shift=torch.cat([t["shift"], t["shift"]], 1))),
        "shift of shape",
    ),
    "calibration without edges": (tensors("calibration", lambda t: t.pop("edges")), "edges"),
    "marginal of another shape": (tensors("calibration", lambda t: t.update(marginal_mean=torch.zeros(9))), "shape"),
    "infinite marginal": (tensors("calibration", lambda t: t["marginal_values"].fill_(math.inf)), "finite numbers"),
    "scale of zero": (scaler(scale=[0.0, 1.0]), "above zero"),
    "NaN location": (scaler(location=[math.nan, 1.0]), "found NaN"),
    "infinite scale": (scaler(scale=[math.inf, 1.0]), "found Infinity"),
    "scale beyond floats": (
        ("predictor.json", lambda old: old.replace(b'"horizon": 1.0', b'"horizon": 1e999')),
        "above zero",
    ),
    "horizon below zero": (scaler(horizon=-1.0), "above zero"),
    "a location too few": (scaler(location=[0.0]), "location of shape"),
    "values of a channel too few": (scaler(values=[[0.0, 1.0]]), "values of 2 channels"),
    "values in another order": (scaler(values=[[1.0, 0.0], []]), "increasing"),
    "a single value": (scaler(values=[[1.0], []]), "none or several"),
    "unknown key in the scaler": (scaler(mean=[0.0]), "mean"),
    "another clock": (about(clock={"kind": "sundial", "timezone": None}), "clock|kind|datetime"),
    "a clock of nowhere": (about(clock={"kind": "datetime", "timezone": "Mars/Olympus"}), "Mars"),
    "unknown baseline": (about(baselines=["oracle"]), "oracle"),
    "baseline twice in each other": (about(baselines=["../model"]), "model"),
    "about a list": (text("predictor.json", b"[1, 2]"), "list indices"),
    "about a key twice": (text("predictor.json", b'{"members": 1, "members": 2}'), "twice"),
    "about deep": (text("predictor.json", b"[" * 10**5), "deep"),
    "card of a list": (text("card.json", b"[1]"), "card"),
    "card of bytes": (text("card.json", b"\xff\xfe\x00"), "codec"),
    "newer family": (config(model={"family": "oracle"}), "family|model"),
    "newer setting": (config(telepathy=True), "telepathy"),
    "setting of a wrong type": (config(train={"steps": "many"}), "train.steps"),
    "configuration of a list": (text("experiment.yaml", b"- 1\n- 2\n"), "valid dictionary"),
    "configuration with a python object": (text("experiment.yaml", b"!!python/object/apply:os.system [ls]"), "python"),
    "configuration that is no YAML": (text("experiment.yaml", b"a: [1, {"), "parsing"),
    "configuration deep": (text("experiment.yaml", b"[" * 2000), "recursion"),
    "wider than its weights": (
        ("experiment.yaml", lambda old: old.replace(b"width: 8", b"width: 16")),
        "size mismatch",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_no_training_leaves_is_refused_in_a_sentence(case: str, saved: Path, tmp_path: Path) -> None:
    (name, change), message = UNSOUND[case]
    folder = copytree(saved, tmp_path / "model")
    rewrite(folder, name, change)
    with pytest.raises(
        ArtifactError, match=rf"is not a predictor this tsde can read \(.*({message}).*: copy"
    ) as caught:
        Predictor.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_saved_predictor_itself_is_sound(saved: Path, tmp_path: Path) -> None:
    folder = copytree(saved, tmp_path / "model")
    rewrite(folder, *about())
    assert len(Predictor.load(folder).members) == 2


UNSOUND_DATASETS = {
    "facts of a list": text("dataset.json", b"[]"),
    "facts of nothing": text("dataset.json", b'{"data": {}}'),
    "no table": text("table.parquet", b"PAR1"),
    "unknown setting": config(telepathy=True),
}


@pytest.mark.parametrize("case", UNSOUND_DATASETS)
def test_a_dataset_that_no_ingest_wrote_is_refused(case: str, tmp_path: Path) -> None:
    spirals(20, 10, seed=1).to_csv(tmp_path / "t.csv", index=False)
    ingest.run(data.load(tmp_path / "t.csv", horizon="1"), tmp_path / "dataset")
    rewrite(tmp_path / "dataset", *UNSOUND_DATASETS[case])
    with pytest.raises(ArtifactError, match=r"is not a dataset this tsde can read \(.+\): ingest it again"):
        data.read_dataset(tmp_path / "dataset")
