"""One given value becomes one leaf's value, or an error that says what would do.

Types are msgspec's to convert: text sources are read leniently (`"8080"` is a number), the file strictly.

Invariant: what comes out is of the leaf's type and in its range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from warmroute.config.leaves import ENGINE_LEAVES, ENGINES, HIDDEN, LEAVES, REQUIRED, SECRETS, Leaf
from warmroute.config.sources import Given, Source, shown, unknown_key
from warmroute.config.tree import EngineConfig
from warmroute.errors import ConfigError

_NO: Final[Mapping[type, str]] = {
    int: "is no integer",
    float: "is no number",
    bool: "is neither true nor false",
    str: "is not text",
}


class JointConfigError(ConfigError):
    """Several ConfigErrors at once, one per line. Its own key, problem and remedy are the first one's."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(errors[0].key, errors[0].problem, errors[0].remedy)
        self.errors = tuple(errors)
        self.args = ("\n".join(map(str, errors)),)


def each_error(error: ConfigError) -> tuple[ConfigError, ...]:
    """The single errors that `error` is made of."""
    return error.errors if isinstance(error, JointConfigError) else (error,)


def raise_all(errors: Sequence[ConfigError]) -> None:
    """Raise what there is: nothing, the one error, or all in one."""
    if errors:
        raise errors[0] if len(errors) == 1 else JointConfigError(errors)


def leaf_value(leaf: Leaf, key: str, given: Given) -> object:
    """The value of `leaf`, of its type and in its range. Raises ConfigError under the name `key`."""
    value = given.value
    if given.textual and value == "":
        raise ConfigError(key, f"empty ({given.source})", f"Unset it, or give {leaf.expects}.")
    if leaf.optional and (value is None or (given.textual and value == "null")):
        return None
    try:
        converted: object = msgspec.convert(value, leaf.kind, strict=not given.textual)
        refusal = leaf.range.refuse(converted) if leaf.range else None
    except msgspec.ValidationError:
        refusal = "is none of them" if leaf.choices else _NO[leaf.kind]
    if refusal is None:
        return converted
    if leaf.name in SECRETS:
        value = HIDDEN
    quoted = ", in quotes" if leaf.kind is str and isinstance(value, bool | int | float) else ""
    raise ConfigError(key, f"{shown(value)} ({given.source}) {refusal}", f"Give {leaf.expects}{quoted}.")


def engine_values(given: Given) -> tuple[EngineConfig, ...]:
    """The engines: URLs, separated by commas in the environment; in the file also mappings. Raises ConfigError(s)."""
    listed = given.value
    if isinstance(listed, str) and given.textual:
        listed = [item.strip() for item in listed.split(",")]
    if not isinstance(listed, list | tuple):
        raise ConfigError(ENGINES, f"{shown(listed)} ({given.source}) is no list", f"Give {LEAVES[ENGINES].expects}.")
    engines: list[EngineConfig] = []
    errors: list[ConfigError] = []
    for number, item in enumerate(listed):
        try:
            engines.append(_engine(f"{ENGINES}[{number}]", item, given.source))
        except ConfigError as error:
            errors.extend(each_error(error))
    raise_all(errors)
    return tuple(engines)


def _engine(key: str, item: object, source: Source) -> EngineConfig:
    if isinstance(item, str):
        item = {"url": item}
    if not isinstance(item, Mapping):
        raise ConfigError(key, f"{shown(item)} ({source}) is no engine", "Give a URL, or a mapping with a url.")
    values: dict[str, Any] = {}
    errors: list[ConfigError] = []
    for name, value in item.items():
        if name not in ENGINE_LEAVES:
            errors.append(unknown_key(f"{key}.{name}", ENGINE_LEAVES, source))
            continue
        try:
            values[name] = leaf_value(ENGINE_LEAVES[name], f"{key}.{name}", Given(value, source))
        except ConfigError as error:
            errors.append(error)
    errors.extend(
        ConfigError(f"{key}.{name}", f"missing ({source})", f"Give {leaf.expects}.")
        for name, leaf in ENGINE_LEAVES.items()
        if leaf.default is REQUIRED and name not in item
    )
    raise_all(errors)
    return EngineConfig(**values)
