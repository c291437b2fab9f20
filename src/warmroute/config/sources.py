"""Three sources, each as given values by dotted key: what the operator wrote, and where.

Here names are settled (unknown ones refused, aliases understood); values are looked at in values.py.

Invariant: nothing that bears our name is dropped silently: it is a given value, a note or an error.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from warmroute.config import aliases
from warmroute.config.addresses import without_credentials
from warmroute.config.leaves import ENV_PREFIX, LEAVES, SECTIONS
from warmroute.errors import ConfigError

CONFIG_VARIABLE: Final = "WARMROUTE_CONFIG"
OTHER_VARIABLES: Final = {
    CONFIG_VARIABLE: "path of the configuration file, if `--config` is not given",
    "WARMROUTE_CACHE": "where the repository's scripts keep what they install and make",
    "WARMROUTE_REQUIRE_VLLM": "tests with real engines fail where these are missing, instead of being skipped",
    "WARMROUTE_REQUIRE_REDIS": "the same for tests with a real Redis",
    "WARMROUTE_REQUIRE_HELM": "the same for tests of the charts with Helm and kubectl",
    "WARMROUTE_FUZZ_SECONDS": "how long the tests fuzz each target",
}
"""Variables with our prefix that are no setting."""
SHOWN_CHARACTERS_MAX: Final = 100


class Origin(enum.StrEnum):
    """The kinds of sources, from the strongest to the weakest."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    ALIAS = "alias"
    FILE = "file"
    REQUEST = "request"
    """An operator's, of a running gateway: engines alone come so."""
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a leaf's value came from."""

    origin: Origin
    name: str = ""
    """The flag, the variable or the file."""

    def __str__(self) -> str:
        return f"{self.origin} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where."""

    value: object
    source: Source

    @property
    def textual(self) -> bool:
        """Whether the source knows text only."""
        return self.source.origin not in (Origin.FILE, Origin.REQUEST)


@dataclass(frozen=True, slots=True)
class Read:
    """What a source gives."""

    given: dict[str, Given] = field(default_factory=dict)
    """Dotted key -> value; `engines` is one key."""
    errors: list[ConfigError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_flags(flags: Mapping[str, str | tuple[str, ...]]) -> Read:
    """What the command line gives: dotted keys that exist, since it was made from them."""
    return Read({key: Given(value, Source(Origin.FLAG, LEAVES[key].flag)) for key, value in flags.items()})


def read_file(document: object, file_name: str) -> Read:
    """What a parsed file gives, None being an empty one."""
    read = Read()
    source = Source(Origin.FILE, file_name)
    if document is None:
        return read
    if not isinstance(document, Mapping):
        problem = f"{shown(document)} is not a mapping of sections"
        read.errors.append(ConfigError(file_name, problem, f"Its sections are {', '.join(_names_in(''))}."))
        return read
    _read_section(read, "", document, source)
    return read


def _read_section(read: Read, section: str, content: Mapping[object, object], source: Source) -> None:
    """Take what a section holds, and its own sections."""
    names = _names_in(section)
    for name, value in content.items():
        key = f"{section}.{name}" if section else str(name)
        if name not in names:
            read.errors.append(unknown_key(key, names, source))
        elif key in LEAVES:
            read.given[key] = Given(value, source)
        elif isinstance(value, Mapping):
            _read_section(read, key, value, source)
        elif value is not None:  # a section whose lines are all commented out is no mistake
            problem = f"{shown(value)} ({source}) is not a mapping"
            read.errors.append(ConfigError(key, problem, "Indent its settings below it."))


def _names_in(section: str) -> list[str]:
    """What a section may hold: its leaves, then its sections."""
    keys = (*LEAVES, *SECTIONS)
    return [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]


def read_environment(environ: Mapping[str, str], *, flagged: Collection[str]) -> Read:
    """What the environment gives, aliases included; `flagged`: keys whose flag is given, so that an alias is idle."""
    ours = {name: value for name, value in environ.items() if name.startswith((ENV_PREFIX, aliases.PREFIX))}
    for name in list(_service_links(ours)):
        del ours[name]
    by_variable = {leaf.variable: key for key, leaf in LEAVES.items()}
    read = Read()
    for name, text in ours.items():
        if name in by_variable:
            read.given[by_variable[name]] = Given(text, Source(Origin.ENVIRONMENT, name))
        elif name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES:
            read.errors.append(_unknown_variable(name, [*by_variable, *OTHER_VARIABLES]))

    understood, errors = aliases.understand(ours)
    read.errors.extend(errors)
    for alias in understood:
        leaf = LEAVES[alias.key]
        if leaf.key in flagged or leaf.key in read.given:
            stronger = leaf.flag if leaf.key in flagged else leaf.variable
            read.notes.extend(
                f"{name} = {text} has no effect: {stronger} is given" for name, text in alias.given.items()
            )
            continue
        read.given[leaf.key] = Given(alias.value, Source(Origin.ALIAS, " and ".join(alias.given)))
        instead = f"set {leaf.variable}={alias.value} instead"
        read.notes.extend(
            f"{name} = {text} is understood as {leaf.key} = {alias.value} ({instead})"
            for name, text in alias.given.items()
        )
    read.notes.extend(aliases.idle_notes(ours))
    return read


def _service_links(environ: Mapping[str, str]) -> Iterator[str]:
    """Variables that Kubernetes puts into every container for a Service of the same namespace.

    A Service called `warmroute-gateway` gives WARMROUTE_GATEWAY_PORT=tcp://10.0.0.1:8080 to its own pods.
    """
    services = [name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")]
    if not services:
        return
    service = "|".join(map(re.escape, services))
    link = re.compile(
        rf"({service})_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    )
    port = re.compile(rf"({service})_PORT")
    for name, value in environ.items():
        if link.fullmatch(name) or (port.fullmatch(name) and "://" in value):
            yield name


def unknown_key(key: str, known: Collection[str], source: Source) -> ConfigError:
    """The error for a key of the file that does not exist; `known`: the names that could stand in its place."""
    if key in LEAVES or key in SECTIONS:
        section, _, leaf = key.rpartition(".")
        problem = f"a dotted key at the top ({source})"
        return ConfigError(key, problem, f"Write `{section}:` and, indented below it, `{leaf}:`.")
    place, dot, name = key.rpartition(".")
    elsewhere = [leaf.key for leaf in LEAVES.values() if leaf.name == name]
    close = elsewhere or [place + dot + match for match in get_close_matches(name, known, n=1)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return ConfigError(key, f"unknown setting ({source})", f"{hint}Known here: {', '.join(known)}.")


def _unknown_variable(name: str, known: Collection[str]) -> ConfigError:
    close = get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    prefixes = [f"{ENV_PREFIX}{key.replace('.', '_').upper()}_" for key in SECTIONS]
    section = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
    if section is None:
        alike = f"{ENV_PREFIX}SECTION_SETTING for each setting of the file, and {', '.join(OTHER_VARIABLES)}"
    else:
        alike = ", ".join(variable for variable in known if variable.startswith(section))
    return ConfigError(name, "unknown variable (environment)", f"{hint}Known: {alike}.")


def shown(value: object) -> str:
    """`value` for an error: short, as YAML has it, and without a password that somebody put into a URL."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    text = without_credentials(repr(value))
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."
