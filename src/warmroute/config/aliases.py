"""Names that Warmroute understands besides its own: the AIBrix variables that did the same, in both their generations.

Whoever moves from AIBrix keeps a deployment's environment; every alias that counts says so in a note, with the name
that should take its place. Two variables that mean different things are refused, never ranked.

Invariant: an alias gives a setting only a value that its WARMROUTE_ variable could give it, as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from warmroute.config.addresses import without_credentials
from warmroute.errors import ConfigError

PREFIX: Final = "AIBRIX_"

# What strconv.ParseBool takes, lower-cased.
_TRUE: Final = ("1", "t", "true")
_FALSE: Final = ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class Alias:
    """One setting under other names."""

    key: str
    names: tuple[str, ...]
    meanings: Mapping[str, tuple[str, ...]] | None = None
    """Lower-cased value -> the settings it is content with, the one it means by itself first; None: as it stands."""


def _booleans(*, true: tuple[str, ...], false: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(_TRUE, true) | dict.fromkeys(_FALSE, false)


ALIASES: Final = (
    Alias(
        "events.enabled",
        ("AIBRIX_KV_EVENT_SYNC_ENABLED", "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"),
        _booleans(true=("true",), false=("false",)),
    ),
    Alias(
        "tokenizer.mode",
        ("AIBRIX_USE_REMOTE_TOKENIZER", "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"),
        _booleans(true=("remote",), false=("off", "local")),
    ),
    Alias(
        "tokenizer.mode",
        ("AIBRIX_PREFIX_CACHE_TOKENIZER_TYPE",),
        # character and tiktoken cut prompts in a way no engine does: their ids match no announced block.
        {"remote": ("remote",), "local": ("local",), "character": ("off",), "tiktoken": ("off",)},
    ),
    Alias(
        "tokenizer.remote_endpoint",
        ("AIBRIX_REMOTE_TOKENIZER_ENDPOINT", "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT"),
    ),
)
WITHOUT_EFFECT: Final = {
    "AIBRIX_PREFIX_CACHE_METRICS_ENABLED": "Warmroute's metrics are always on",
    "AIBRIX_PREFIX_CACHE_LOCAL_ROUTER_METRICS_ENABLED": "Warmroute's metrics are always on",
    "AIBRIX_REMOTE_TOKENIZER_ENGINE": "Warmroute learns from an engine what it is",
}


@dataclass(frozen=True, slots=True)
class Understood:
    """What one or several variables mean for one setting."""

    key: str
    contents: tuple[str, ...]
    """The settings that all of the variables are content with, the one that counts first."""
    given: Mapping[str, str]
    """Variable -> its value."""

    @property
    def value(self) -> str:
        """The setting's value, as text."""
        return self.contents[0]


def understand(environ: Mapping[str, str]) -> tuple[list[Understood], list[ConfigError]]:
    """What the aliases mean, those of one setting made to agree, and what is wrong with them.

    A variable that is set but empty counts as not set, as it did in the other system.
    """
    understood: dict[str, Understood] = {}
    errors: list[ConfigError] = []
    for alias, name in [(entry, name) for entry in ALIASES for name in entry.names if environ.get(name)]:
        given = environ[name]
        meaning = (given,) if alias.meanings is None else alias.meanings.get(given.lower())
        if meaning is None:
            errors.append(
                ConfigError(name, f"{given!r} is not a value it has", f"It takes {', '.join(alias.meanings or ())}.")
            )
            continue
        before = understood.get(alias.key)
        if before is None:
            understood[alias.key] = Understood(alias.key, meaning, {name: given})
            continue
        common = tuple(value for value in before.contents if value in meaning)
        understood[alias.key] = Understood(alias.key, common or meaning, {**before.given, name: given})
        if not common:
            said = " contradicts ".join(f"{name} = {given}" for name, given in understood[alias.key].given.items())
            errors.append(ConfigError(alias.key, without_credentials(said), "Keep the one that is meant."))
    refused = {error.key for error in errors}
    return [alias for key, alias in understood.items() if key not in refused], errors


def idle_notes(environ: Mapping[str, str]) -> Iterator[str]:
    """What to tell of variables with the other system's prefix that change nothing here."""
    for name, why in WITHOUT_EFFECT.items():
        if name in environ:
            yield f"{name} = {environ[name]} has no effect: {why}"
    known = {name for alias in ALIASES for name in alias.names} | set(WITHOUT_EFFECT)
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        yield f"{', '.join(unknown)}: no counterpart in Warmroute, no effect"
