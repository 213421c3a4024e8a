"""Trees as text: the same numbers as LightGBM's own, and nothing else is ever handed to it."""

from __future__ import annotations

import random
import re
import sys
from typing import Any

import numpy as np
import pytest

from tsde import trees
from tsde.errors import ConfigError

lightgbm = pytest.importorskip("lightgbm")

FEATURES = 5
SIZES = (3, 6)  # trees of the two outputs


def table(rows: int, seed: int) -> np.ndarray:
    """Two numbers with gaps, a category of thirty, a constant, and one that is mostly missing."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, FEATURES))
    x[:, 2] = draw.integers(0, 30, rows)
    x[:, 3] = 1.0
    x[draw.random(rows) < 0.2, 0] = np.nan
    x[draw.random(rows) < 0.9, 4] = np.nan
    return x


def boosters() -> list[Any]:
    x = table(3000, 0)
    y = np.nan_to_num(x[:, 0]) * (x[:, 2] % 3) + x[:, 1] ** 2 + np.isnan(x[:, 4])
    found = []
    for count, level in zip(SIZES, (0.2, 0.8), strict=True):
        settings = {"objective": "quantile", "alpha": level, "num_leaves": 8, "num_threads": 1, "verbosity": -1}
        data = lightgbm.Dataset(x, y, categorical_feature=[2], params=settings)
        found.append(lightgbm.train(settings, data, count))
    return found


BOOSTERS = boosters()
TEXT = trees.join([booster.model_to_string() for booster in BOOSTERS], FEATURES)


def predicted(booster: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(booster.predict(x, raw_score=True, num_threads=1))


def test_the_joined_trees_give_the_numbers_of_each() -> None:
    """Bit for bit, also for categories that were never seen and where everything is missing."""
    x = table(2000, 1)
    x[:50, 2] = np.linspace(-3, 70, 50)
    x[50:60] = np.nan
    found = predicted(trees.read(TEXT.encode(), FEATURES, 2), x)
    assert np.array_equal(found, np.stack([predicted(booster, x) for booster in BOOSTERS], -1))
    assert (found.std(0) > 0.1).all()
    assert "num_cat=0" in TEXT and re.search("num_cat=[1-9]", TEXT) and TEXT.count("Tree=") == 2 * max(SIZES)


def test_constants_are_what_they_say() -> None:
    text = trees.constants([1.5, -2.0, 1e-9], FEATURES)
    assert predicted(trees.read(text.encode(), FEATURES, 3), table(4, 2)).tolist() == [[1.5, -2.0, 1e-9]] * 4


def changed(name: str, new: str) -> str:
    """The first line of a name in the text with other contents."""
    return re.sub(rf"(?<=\n{name}=)[^\n]*", new, TEXT, count=1)


def numbers(name: str) -> list[str]:
    found = re.search(rf"\n{name}=([^\n]*)", TEXT)
    assert found is not None
    return found[1].split(" ")


def with_first(name: str, value: str) -> str:
    return changed(name, " ".join([value, *numbers(name)[1:]]))


HOSTILE = {
    "nothing": "",
    "no tree": trees.constants([], FEATURES),
    "another head": TEXT.replace("version=v4", "version=v3", 1),
    "more outputs than said": TEXT.replace("num_class=2", "num_class=3", 1),
    "more features": TEXT.replace(f"max_feature_idx={FEATURES - 1}", "max_feature_idx=1000000", 1),
    "a parameter": TEXT.replace("feature_infos", "linear_tree=1\nfeature_infos", 1),
    "torn": TEXT[: len(TEXT) // 2],
    "torn at the last tree": TEXT[: TEXT.rindex("leaf_value")] + "\n\nend of trees\n",
    "something after the end": TEXT + "pandas_categorical:[[1]]\n",
    "a tree too few": TEXT[: TEXT.rindex("Tree=")] + "end of trees\n",
    "a tree twice": TEXT.replace("Tree=1\n", "Tree=0\n", 1),
    "a child that does not exist": with_first("left_child", "100000"),
    "a child far before": with_first("left_child", "-2000000000"),
    "a circle": with_first("left_child", "0"),
    "one child of two splits": changed("left_child", " ".join([numbers("left_child")[0]] * len(numbers("left_child")))),
    "a feature that does not exist": with_first("split_feature", str(FEATURES)),
    "a number too large": with_first("split_feature", "9" * 30),
    "fewer splits": changed("split_feature", "0"),
    "more leaves than said": changed("num_leaves", "2"),
    "millions of leaves": changed("num_leaves", "9999999"),
    "fewer leaves": changed("leaf_value", "1.0"),
    "an infinite leaf": with_first("leaf_value", "1e999"),
    "no number": with_first("leaf_value", "1.0.0"),
    "two spaces": with_first("leaf_value", "1.0 "),
    "a threshold that is no number": with_first("threshold", "nan"),
    "an unknown kind of split": with_first("decision_type", "200"),
    "a linear tree": TEXT.replace("is_linear=0", "is_linear=1", 1),
    "a set of categories that does not exist": re.sub(
        r"(threshold=)[^\n]*(\ndecision_type=)[^\n]*(\nleft_child=[^\n]*\nright_child=[^\n]*\nleaf_value=[^\n]*\ncat_)",
        lambda found: f"{found[1]}{' '.join(['77'] * 7)}{found[2]}{' '.join(['1'] * 7)}{found[3]}",
        TEXT,
        count=1,
    ),
    "boundaries that lead outside": changed("cat_boundaries", " ".join(["0"] + ["90000"] * 9)),
    "boundaries that go back": changed("cat_boundaries", " ".join(reversed(numbers("cat_boundaries")))),
    "more words of categories": changed("cat_threshold", " ".join(["1"] * 9)),
    "a word of more than 32 bits": with_first("cat_threshold", str(2**32)),
    "no sets of categories": changed("num_cat", "0"),
    "a null byte": TEXT.replace("Tree=1", "Tree=\0", 1),
    "letters of elsewhere": TEXT.replace("Tree=1", "Tree=\u0661", 1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_tree_is_refused(case: str) -> None:
    assert HOSTILE[case] != TEXT
    with pytest.raises(ValueError) as caught:
        trees.check(HOSTILE[case].encode(), FEATURES, 2)
    assert 10 < len(str(caught.value)) < 200 and "\n" not in str(caught.value).replace("\\n", "")


def test_trees_for_other_features_or_outputs_are_refused() -> None:
    for features, outputs in ((FEATURES - 1, 2), (FEATURES, 1), (FEATURES, 4)):
        with pytest.raises(ValueError, match="found another head"):
            trees.check(TEXT.encode(), features, outputs)


def test_whatever_passes_the_check_can_be_walked() -> None:
    """Bytes replaced, taken out and doubled at random: refused, or trees that answer every row; never a crash."""
    draw, x, passed = random.Random(0), table(50, 3), 0
    source = TEXT.encode()
    for _ in range(600):
        data = bytearray(source)
        for _ in range(draw.choice([1, 1, 1, 2, 8])):
            at, width = draw.randrange(len(data)), draw.choice([1, 1, 2, 30])
            kind = draw.randrange(4)
            if kind == 0:
                data[at] = draw.choice(b"0123456789- .e")
            elif kind == 1:
                del data[at : at + width]
            elif kind == 2:
                data[at:at] = data[at : at + width]
            else:
                data[at] = draw.randrange(256)
        try:
            trees.check(bytes(data), FEATURES, 2)
        except ValueError:
            continue
        passed += 1
        found = predicted(trees.read(bytes(data), FEATURES, 2), x)
        assert found.shape == (50, 2) and np.isfinite(found).all()
    assert 20 < passed < 400  # a changed digit of a leaf is another tree, not a wrong one


def test_a_missing_library_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"expects LightGBM, .* not installed \(python -m pip install lightgbm"):
        trees.library()


def test_a_library_that_does_not_load_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(trees.importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"cannot be loaded \(libgomp.*needs the package libgomp1"):
        trees.library()
