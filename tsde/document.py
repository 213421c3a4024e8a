"""YAML as plain data without surprises: no tags, no aliases, no key twice, no depth or size that only an attack has."""

from __future__ import annotations

from typing import Any

import yaml

from tsde.errors import ConfigError

_MOST = 2**20  # characters
_DEEPEST = 20


def parse_yaml(text: str, origin: str) -> Any:
    """What a YAML text says: mappings, lists, text, numbers, booleans, dates and None.

    Args:
        origin: what the error calls the text.

    Raises:
        ConfigError: it is no YAML, or uses one of the parts that are refused; with the line.
    """
    if len(text) > _MOST:
        raise ConfigError(f"{origin}: expected at most {_MOST:,} characters of YAML, found {len(text):,}")
    try:
        _check_events(text, origin)  # first: what follows recurses into the depths of the document
        _check_keys(yaml.compose(text, yaml.SafeLoader), origin)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        reason = error.problem or error.context
        raise ConfigError(f"{origin}{_place(error.problem_mark)}: not readable as YAML: {reason}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date such as 2024-99-99
        raise ConfigError(f"{origin}: not readable as YAML: {str(error).splitlines()[0]}") from error


def shortened(text: str) -> str:
    """The start of a text that would be too long for a message."""
    return text if len(text) <= 80 else text[:77] + "..."


def _check_events(text: str, origin: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        where = f"{origin}{_place(event.start_mark)}"
        if depth > _DEEPEST:
            raise ConfigError(f"{where}: nested more than {_DEEPEST} levels deep; a configuration has three")
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: the alias *{event.anchor} is not read; write the value out")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise ConfigError(f"{where}: the tag {event.tag!r} is not read; write a plain value")


def _check_keys(node: yaml.Node | None, origin: str) -> None:
    """Refuse a key that stands twice in one mapping, of which YAML would take the last in silence."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, origin)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ConfigError(f"{origin}{_place(key.start_mark)}: the key {key.value!r} stands twice; keep one")
            seen.add(key.value)
        _check_keys(value, origin)


def _place(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark is not None else ""
