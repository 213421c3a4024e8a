"""The shape of the code, read from its syntax trees: who imports whom, and what appears once or never."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each module of the library and its layer: a module imports lower layers only, never its own or a higher one.
# A new module gets one line here. "models.*" is every family that has no line of its own.
LAYERS: dict[str, int] = {
    "errors": 0,
    "calendar": 1,
    "series": 2,
    "noise": 1,
    "locks": 0,
    "files": 1,
    "threads": 1,
    "crew": 1,
    "artifact": 2,
    "findings": 1,
    "document": 1,
    "distribution": 2,  # a currency like series, so low: scaling and calibration act on it
    "lattice": 3,
    "packed": 2,
    "sheet": 2,
    "csvtext": 2,
    "reading": 3,
    "clock": 3,
    "stamps": 3,
    "times": 4,
    "channels": 3,
    "ragged": 4,
    "rows": 5,
    "runs": 1,
    "blocks": 4,
    "bulk": 7,
    "suspicion": 5,
    "table": 6,
    "scaling": 7,
    "windows": 7,
    "path": 8,
    "tableau": 1,
    "trees": 1,
    "scans.pairs": 1,
    "scans.controlled": 2,
    "scans.gated": 2,
    "scans.innovation": 2,
    "scans.steered": 2,
    "scans": 3,
    "solving": 1,
    "adaptive": 1,
    "flow": 9,
    "diffusion": 10,
    "metrics": 10,
    "plot": 11,
    "synthetic": 11,
    "heads": 11,
    "model": 11,
    "models.bend": 14,
    "models.nearer": 14,
    "models.parts": 12,
    "models.recent": 13,
    "models.harmonics": 1,
    "models.cycle": 13,
    "models.regression": 14,
    "models.linear": 15,
    "models.components": 14,
    "models.horizon": 14,
    "models.readout": 16,
    "models.*": 17,
    "models": 18,
    "validating": 12,
    "trust": 13,
    "training": 19,
    "calibration": 19,
    "advice": 19,
    "config": 20,
    "members": 21,
    "requests": 21,
    "soundness": 21,
    "worker": 22,
    "predictor": 22,
    "choosing": 22,
    "fitting": 23,
    "evaluation": 23,
    "": 24,  # tsde/__init__.py
}

SHARED_PARTS = {
    f"tsde.models.{part}"
    for part in (
        "bend",
        "nearer",
        "parts",
        "recent",
        "harmonics",
        "cycle",
        "regression",
        "linear",
        "components",
        "horizon",
        "readout",
    )
}
MLFLOW_FILES = {"pipelines/tracking.py", "pipelines/mlflow_model.py"}
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """`tsde/models/parts.py` -> `tsde.models.parts`, `tsde/__init__.py` -> `tsde`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {path.relative_to(ROOT).as_posix(): path for package in ("tsde", "pipelines") for path in sources(package)}
MODULES = {name_of(path) for path in FILES.values()} | {"tsde", "pipelines"}
TREES = {file: ast.parse(path.read_text(encoding="utf-8"), file) for file, path in FILES.items()}


def imports(file: str) -> Iterator[tuple[str, int]]:
    """Full name and line of every import, also inside functions; relative ones resolved."""
    path = FILES[file]
    package = name_of(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from tsde import errors` imports the module tsde.errors, not a name of tsde
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def layer(module: str) -> int | None:
    """Layer of `tsde.models.parts` and the like; None for a module that the table does not know."""
    short = module.removeprefix("tsde").removeprefix(".")
    family = short.startswith("models.") and short.count(".") == 1
    return LAYERS.get(short, LAYERS["models.*"] if family else None)


def importers(package: str, names: set[str]) -> list[str]:
    """`file:line imports name` for every import of one of `names` under a package."""
    return [
        f"{file}:{line} imports {name}"
        for file in FILES
        if file.startswith(f"{package}/")
        for name, line in imports(file)
        if name.split(".")[0] in names
    ]


def calls(package: str, names: set[str]) -> list[str]:
    """`file:line name` for every call of one of `names`, written as in the source (`torch.load`), under a folder."""
    return [
        f"{file}:{node.lineno} {ast.unparse(node.func)}"
        for file, tree in TREES.items()
        if file.startswith(f"{package}/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def test_every_module_has_a_layer() -> None:
    unknown = [file for file in FILES if file.startswith("tsde/") and layer(name_of(FILES[file])) is None]
    assert not unknown, f"give {unknown} a line in LAYERS of {Path(__file__).name}: which modules may it import?"


def test_imports_follow_the_arrow() -> None:
    wrong = []
    for file in (file for file in FILES if file.startswith("tsde/")):
        own = layer(name_of(FILES[file]))
        for name, line in imports(file):
            if name.split(".")[0] == "tsde" and own is not None:
                other = layer(name)
                if other is None or other >= own:
                    wrong.append(f"{file}:{line} (layer {own}) imports {name} (layer {other})")
    assert not wrong, "a module imports lower layers only:\n" + "\n".join(wrong)


def test_every_family_is_in_models() -> None:
    families = {name for name in MODULES if name.startswith("tsde.models.") and name not in SHARED_PARTS}
    missing = families - {name for name, _ in imports("tsde/models/__init__.py")}
    assert not missing, f"tsde/models/__init__.py does not import {sorted(missing)}: add them to MODELS"


def test_the_library_knows_no_application() -> None:
    assert not importers("tsde", {"pipelines", "mlflow", "typer"})


def test_only_the_tracking_files_import_mlflow() -> None:
    outside = [place for place in importers("pipelines", {"mlflow"}) if place.split(":")[0] not in MLFLOW_FILES]
    assert not outside


def test_one_abstract_class() -> None:
    abstract = [
        f"{file}: {node.name}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and {ast.unparse(base) for base in [*node.bases, *(keyword.value for keyword in node.keywords)]}
        & {"ABC", "abc.ABC", "ABCMeta", "abc.ABCMeta"}
    ]
    assert abstract == ["tsde/model.py: Forecaster"]


def test_one_optimiser_step() -> None:
    step = re.compile(r"(^|\.)opt(imi[sz]er)?\.step$")
    texts = {
        file: [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)] for file, tree in TREES.items()
    }
    steps = [file for file, functions in texts.items() for text in functions if step.search(text)]
    makers = [file for file, functions in texts.items() for text in functions if text.startswith("torch.optim.")]
    assert steps == ["tsde/training.py"]
    assert set(makers) <= {"tsde/training.py"}


@pytest.mark.parametrize("package", ["tsde", "pipelines"])
def test_nothing_is_pickled(package: str) -> None:
    assert not importers(package, PICKLERS)
    assert not calls(package, {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"})


@pytest.mark.parametrize("package", ["tsde", "pipelines"])
def test_no_probing_for_attributes(package: str) -> None:
    assert not calls(package, {"hasattr"})


def test_the_library_neither_prints_nor_exits() -> None:
    assert not calls("tsde", {"print", "exit", "quit", "sys.exit", "os._exit"})


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("tsde", {"mlflow", "typer"}), ("pipelines.cli", {"mlflow", "torch", "pandas", "fastapi"})],
)
def test_importing_stays_light(module: str, heavy: set[str]) -> None:
    script = f"import {module}, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {module} also imports {done.stdout.strip()}"


def test_package_data_is_in_the_wheel() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    missing = [
        path.relative_to(ROOT).as_posix()
        for package in ("tsde", "pipelines")
        for path in (ROOT / package).rglob("*")
        if path.is_file()
        and path.suffix not in {".py", ".pyc"}
        and not any(
            fnmatch.fnmatch(path.relative_to(ROOT / package).as_posix(), glob) for glob in declared.get(package, [])
        )
    ]
    assert not missing, f"add {missing} to [tool.setuptools.package-data], or the wheel goes without"
