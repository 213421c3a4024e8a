"""Boosted trees as text: what LightGBM wrote, cut down to what a forecast needs, and read only where it is sound.

LightGBM trusts the text it is given: a child that does not exist is followed out of the process's memory. So a text is
written here in one fixed form, and whatever does not have that form, or holds a tree that is none, is refused before
LightGBM sees it. Nothing in the form can execute code.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from tsde.errors import ConfigError

if TYPE_CHECKING:
    import lightgbm

MISSING = "family boosting expects LightGBM, which is not installed (python -m pip install lightgbm)"
"""What a person without the optional dependency reads."""

_END = "end of trees\n"
_INTEGERS = {"split_feature", "decision_type", "left_child", "right_child", "cat_boundaries", "cat_threshold"}
_SPLITS = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_CATEGORIES = ("cat_boundaries", "cat_threshold")
_TREE = re.compile(
    r"num_leaves=(?P<num_leaves>\d{1,6})\nnum_cat=(?P<num_cat>\d{1,6})\n"
    r"(?:split_feature=(?P<split_feature>[\d ]+)\nthreshold=(?P<threshold>[-+.einf\d ]+)\n"
    r"decision_type=(?P<decision_type>[\d ]+)\n"
    r"left_child=(?P<left_child>[-\d ]+)\nright_child=(?P<right_child>[-\d ]+)\n)?"
    r"leaf_value=(?P<leaf_value>[-+.e\d ]+)\n"
    r"(?:cat_boundaries=(?P<cat_boundaries>[\d ]+)\ncat_threshold=(?P<cat_threshold>[\d ]+)\n)?"
    r"is_linear=0\nshrinkage=1\n"
)


def available() -> bool:
    """Whether LightGBM is installed."""
    return importlib.util.find_spec("lightgbm") is not None


def library() -> Any:
    """The optional dependency, imported when it is first needed.

    Raises:
        ConfigError: it is not installed, or lacks a system library; says how to install it.
    """
    try:
        return importlib.import_module("lightgbm")
    except ImportError as error:
        raise ConfigError(MISSING) from error
    except OSError as error:
        raise ConfigError(
            f"family boosting expects LightGBM, which cannot be loaded ({error}); on Debian and Ubuntu it needs the "
            "package libgomp1"
        ) from error


def join(outputs: Sequence[str], features: int) -> str:
    """Several of LightGBM's text models over the same features as one model with as many outputs, in our form.

    Where one has fewer trees than another, trees of a single leaf at zero take their place.
    """
    blocks = zip_longest(*(_written(text) for text in outputs), fillvalue=constant(0.0))
    trees = [block for row in blocks for block in row]
    return _header(features, len(outputs)) + "".join(f"Tree={i}\n{block}\n" for i, block in enumerate(trees)) + _END


def constants(values: Sequence[float], features: int) -> str:
    """A model whose outputs are the same whatever the features."""
    trees = "".join(f"Tree={i}\n{constant(value)}\n" for i, value in enumerate(values))
    return _header(features, len(values)) + trees + _END


def constant(value: float) -> str:
    """A tree of one leaf."""
    return f"num_leaves=1\nnum_cat=0\nleaf_value={value!r}\nis_linear=0\nshrinkage=1\n"


def read(data: bytes, features: int, outputs: int) -> lightgbm.Booster:
    """The model of a text in our form.

    Raises:
        ValueError: it is not in that form, is for other features or outputs, or holds a tree that is none.
        ConfigError: LightGBM is not there.
    """
    text = check(data, features, outputs)
    module = library()
    try:
        return module.Booster(model_str=text)
    except module.basic.LightGBMError as error:
        raise ValueError(f"LightGBM cannot read the trees: {error}") from error


def check(data: bytes, features: int, outputs: int) -> str:
    """The text, if every tree in it is sound.

    Raises:
        ValueError: as `read`.
    """
    header = _header(features, outputs)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise ValueError("expected trees as ASCII text, found other bytes") from error
    if not text.startswith(header) or not text.endswith(f"\n{_END}"):
        raise ValueError(f"expected trees on {features} features with {outputs} outputs, found another head or end")
    blocks = text[len(header) : -len(_END)].split("\n\n")
    if blocks.pop() or not blocks or len(blocks) % outputs:
        raise ValueError(f"expected a multiple of {outputs} trees, found {len(blocks)} or a torn one")
    for number, block in enumerate(blocks):
        name, _, body = block.partition("\n")
        found = _TREE.fullmatch(body + "\n")
        if name != f"Tree={number}" or found is None:
            raise ValueError(f"expected tree {number}, found {block[:40]!r}")
        if wrong := _unsound(found, features):
            raise ValueError(f"tree {number} is none: {wrong}")
    return text


def _header(features: int, outputs: int) -> str:
    return (
        f"tree\nversion=v4\nnum_class={outputs}\nnum_tree_per_iteration={outputs}\nlabel_index=0\n"
        f"max_feature_idx={features - 1}\nfeature_names={' '.join(f'Column_{i}' for i in range(features))}\n"
        f"feature_infos={' '.join(['none'] * features)}\n\n"
    )


def _written(text: str) -> Iterator[str]:
    """The trees of one of LightGBM's own text models, in our form: without what only training needs."""
    for block in text[: text.index(f"\n{_END}")].split("\nTree=")[1:]:
        lines = dict(line.split("=", 1) for line in block.splitlines()[1:] if line)
        splits = [f"{name}={lines[name]}\n" for name in _SPLITS if int(lines["num_leaves"]) > 1]
        categories = [f"{name}={lines[name]}\n" for name in _CATEGORIES if int(lines["num_cat"])]
        count = f"num_leaves={lines['num_leaves']}\nnum_cat={lines['num_cat']}\n"
        leaves = f"leaf_value={lines['leaf_value']}\n"
        yield "".join([count, *splits, leaves, *categories, "is_linear=0\nshrinkage=1\n"])


def _unsound(found: re.Match[str], features: int) -> str | None:
    """What is wrong with a tree; None if it can be walked down from its root to a leaf, whatever the features."""
    leaves, categories = int(found["num_leaves"]), int(found["num_cat"])
    try:
        part = {name: _numbers(name, text) for name, text in found.groupdict().items() if text is not None}
    except (ValueError, OverflowError):
        return "expected numbers of at most 64 bits with single spaces between them"
    if len(part["leaf_value"]) != leaves or not np.isfinite(part["leaf_value"]).all():
        return f"expected {leaves} finite leaves"
    if (leaves > 1) != ("left_child" in part) or (categories > 0) != ("cat_boundaries" in part):
        return "its splits and its numbers of leaves and categories do not match"
    if leaves == 1:
        return "one leaf splits nothing" if categories else None
    if any(len(part[name]) != leaves - 1 for name in _SPLITS):
        return f"expected {leaves - 1} splits"
    if not (part["split_feature"] < features).all():
        return f"expected splits on {features} features"
    return _unlinked(part["left_child"], part["right_child"]) or _unsound_categories(part, categories)


def _unlinked(left: np.ndarray, right: np.ndarray) -> str | None:
    """Every split but the first and every leaf has one parent, which stands before it: so there are no circles."""
    children, parents = np.concatenate([left, right]), np.tile(np.arange(len(left)), 2)
    inner = children >= 0
    if (children[inner] <= parents[inner]).any():
        return "a split leads back"
    if not np.array_equal(np.sort(children), np.r_[-len(left) - 1 : 0, 1 : len(left)]):
        return "expected one parent for each split and leaf"
    return None


def _unsound_categories(part: dict[str, np.ndarray], categories: int) -> str | None:
    """A split by category names one of the sets, which are words of 32 bits each between two boundaries."""
    by_category = part["decision_type"] % 2 == 1
    if (part["decision_type"] > 15).any():
        return "expected kinds of splits below 16"
    if not categories:
        return "expected sets of categories" if by_category.any() else None
    named, edges = part["threshold"][by_category], part["cat_boundaries"]
    if len(edges) != categories + 1 or edges[0] != 0 or (np.diff(edges) < 1).any():
        return f"expected boundaries of {categories} sets of categories"
    if len(part["cat_threshold"]) != edges[-1] or (part["cat_threshold"] >= 2**32).any():
        return f"expected {edges[-1]} words of categories"
    if not np.isin(named, np.arange(categories)).all():
        return f"expected splits by one of {categories} sets of categories"
    return None


def _numbers(name: str, text: str) -> np.ndarray:
    words = text.split(" ")
    return np.array([int(word) for word in words], np.int64) if name in _INTEGERS else np.array(words, np.float64)
