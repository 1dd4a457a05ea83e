"""Checks that the configurations of all networks share: they can come from a stranger's file."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def check(network: str, holds: bool, name: str, rule: str, value: object) -> None:
    """Refuse a setting of ``network`` that breaks a rule.

    Raises:
        ValueError: ``holds`` is false; the message has the network, the name, the rule, the value.
    """
    if not holds:
        shown = repr(value)
        raise ValueError(f"{network}: {name} must be {rule}, got {shown[:100]}")


def from_plain(kind: type[T], network: str, values: dict[str, Any]) -> T:
    """A configuration from what ``dataclasses.asdict`` gave and JSON carried, every type checked.

    Args:
        kind: the dataclass; its annotations are int, float, str and tuples of one of them.
        network: the word that messages begin with.
        values: a value for every field and no other.

    Raises:
        ValueError: a key is missing or unknown, or a value has the wrong type or range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{network}: must be a table of settings, got {type(values).__name__}")
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if set(values) != set(known):
        different = sorted(set(values) ^ set(known))
        raise ValueError(f"{network}: settings must be {sorted(known)}, differ in {different}")
    return kind(**{key: _typed(network, key, known[key], values[key]) for key in known})


def _typed(network: str, name: str, kind: str, value: Any) -> Any:
    """``value`` from JSON as the annotated type of a field."""
    scalar = {"int": int, "str": str, "float": (int, float)}
    if kind.startswith("tuple["):
        item = scalar[kind.removeprefix("tuple[").split(",")[0]]
        if isinstance(value, (list, tuple)) and all(type(v) in _as_tuple(item) for v in value):
            return tuple(value)
    elif type(value) in _as_tuple(scalar[kind]):
        return value
    raise ValueError(f"{network}: {name} must be {kind}, got {str(value)[:100]!r}")


def _as_tuple(types: type | tuple[type, ...]) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)
