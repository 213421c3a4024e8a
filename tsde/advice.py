"""What a person who typed an unknown key of a configuration probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from pydantic import BaseModel

from tsde.models import config_of


def advice(field: str, root: type[BaseModel], family: str) -> str:
    """The key of the same section that is spelled alike, or else its namesake in another section, or else all keys.

    Args:
        field: the unknown key with its path, such as `train.stepz`.
        root: the document's model; its section `model` is that of the family.
    """
    known = list(_keys(root, family))
    path, _, name = field.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == path]
    if close := get_close_matches(name, siblings, 1):
        return f"did you mean {'.'.join([*filter(None, [path]), *close])!r}?"
    if namesakes := [key for key in known if key.endswith(f".{name}")]:
        return f"did you mean {' or '.join(map(repr, namesakes))}?"
    return f"expected one of {', '.join(siblings)}"


def _keys(section: type[BaseModel], family: str, prefix: str = "") -> Iterator[str]:
    """Every key of a document with its path."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = config_of(family) if prefix + name == "model" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, family, f"{prefix}{name}.")
