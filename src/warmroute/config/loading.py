"""Flags, environment and file become the one Config, each leaf with where it came from.

Pure: whoever calls has read the sources. Precedence: flags, WARMROUTE_ variables, aliases, the file, defaults. Only the
value that counts is checked, so a flag can overrule a broken file; but a key or variable that does not exist is refused
wherever it stands.

Invariant: either a Config whose every leaf is in range and which does not contradict itself, or a ConfigError that
tells everything that is wrong, not just the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from warmroute.config import contradictions
from warmroute.config.leaves import ENGINES, LEAVES, SECTIONS
from warmroute.config.sources import Origin, Source, read_environment, read_file, read_flags
from warmroute.config.tree import Config, EngineConfig
from warmroute.config.values import each_error, engine_values, leaf_value, raise_all
from warmroute.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and its story."""

    config: Config
    sources: Mapping[str, Source]
    """Dotted key -> where its value came from, for every leaf; `engines` is one leaf."""
    notes: tuple[str, ...] = ()
    """What the operator should be told though nothing is wrong."""


def load(
    *,
    flags: Mapping[str, str | tuple[str, ...]],
    environ: Mapping[str, str],
    document: object = None,
    file_name: str = "configuration file",
) -> Loaded:
    """The configuration that these sources give.

    `flags`: dotted key -> text, `engines` -> texts. `environ`: the process's environment, all of it. `document`: the
    parsed file, None if empty or absent; `file_name`: what to call it. Raises ConfigError, or
    JointConfigError for several.
    """
    reads = (read_file(document, file_name), read_environment(environ, flagged=flags.keys()), read_flags(flags))
    errors = [error for read in reads for error in read.errors]
    given = {key: value for read in reads for key, value in read.given.items()}

    values: dict[str, object] = {key: leaf.default for key, leaf in LEAVES.items()}
    failed = {error.key for error in errors}
    for key, value in given.items():
        try:
            values[key] = engine_values(value) if key == ENGINES else leaf_value(LEAVES[key], key, value)
        except ConfigError as error:
            errors.extend(each_error(error))
            failed.add(key)
    config = _build(values)

    def said(key: str) -> str | None:
        return str(given[key].source) if key in given else None

    for keys, rule in contradictions.RULES:
        if failed.isdisjoint(keys):
            errors.extend(rule(config, said))
    raise_all(sorted(errors, key=_position))
    notes = [note for read in reads for note in read.notes]
    notes.extend(contradictions.idle_notes(config, said))
    sources = {key: given[key].source if key in given else Source(Origin.DEFAULT) for key in LEAVES}
    return Loaded(config, sources, tuple(notes))


def _build(values: Mapping[str, object]) -> Config:
    sections: dict[str, dict[str, Any]] = {"": {}}
    for name, cls in reversed(tuple(SECTIONS.items())):  # those of a section before itself
        own = {leaf.name: values[leaf.key] for leaf in LEAVES.values() if leaf.section == name}
        place, _, last = name.rpartition(".")
        sections.setdefault(place, {})[last] = cls(**own, **sections.pop(name, {}))
    return Config(engines=cast("tuple[EngineConfig, ...]", values[ENGINES]), **sections[""])


def _position(error: ConfigError) -> int:
    """Errors are told in the tree's order, those of no leaf first; equal ones as they were found."""
    key = ENGINES if error.key.startswith(f"{ENGINES}[") else error.key
    return list(LEAVES).index(key) if key in LEAVES else -1
