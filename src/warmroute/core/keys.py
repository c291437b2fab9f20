"""API keys: who a request comes from, known by the hash of a secret.

A key is 256 bits of randomness, so one round of SHA-256 hides it as well as a slow hash would: there is no dictionary
to try. Only hashes are kept, on disk and in memory. The file has one key per line: a name, a hash, and its limits:

    alice    sha256:4f8b...  requests_per_min=600 tokens_per_min=200000 priority=-10
    batch-7  sha256:09aa...  priority=10

Invariant: the time a look-up takes tells nothing of a secret: keys are found by the hash of what was offered, which
whoever offers it cannot steer, and hashes are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from warmroute.errors import ConfigError

KEY_PREFIX = "wr-"
"""Begins every key that we make, so that scanners for leaked secrets can know it."""

PRIORITY_MAX = 1_000_000
_LIMIT_MAX = 10**12
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_FIND_BYTES = 8
"""Of a hash, to find the key by; the rest is compared in constant time."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key: everything but the secret."""

    name: str
    digest: bytes
    """SHA-256 of the secret."""
    requests_per_min: int | None = None
    """None: as many as it likes."""
    tokens_per_min: int | None = None
    """Prompt and completion together; None: as many as it likes."""
    priority: int = 0
    """Where its requests stand when they must wait: lower goes first, as in vLLM."""


class Keys:
    """All keys of one listener."""

    __slots__ = ("_by_digest", "by_name")

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.by_name: Mapping[str, ApiKey] = {key.name: key for key in keys}
        self._by_digest = {key.digest[:_FIND_BYTES]: key for key in self.by_name.values()}

    def find(self, secret: bytes) -> ApiKey | None:
        """The key whose secret this is, or None."""
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest[:_FIND_BYTES])
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def is_name(text: str) -> bool:
    """Whether a key may be called so."""
    return _NAME.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """A secret's hash, as the file has it."""
    return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


def parse_keys(text: str, setting: str) -> Keys:
    """Read a file of keys; `setting` is what named it. Raises ConfigError at the first line that is none."""
    names: set[str] = set()
    digests: set[bytes] = set()
    keys = []
    for number, fields in _lines(text):
        place = f"line {number} of the file"
        key = _key(fields, setting, place)
        if key.name in names or key.digest[:_FIND_BYTES] in digests:
            raise ConfigError(setting, f"{place} has a name or a hash again", "Give every key its own.")
        names.add(key.name)
        digests.add(key.digest[:_FIND_BYTES])
        keys.append(key)
    return Keys(keys)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if fields:
            yield number, fields


def _key(fields: list[str], setting: str, place: str) -> ApiKey:
    # Nothing of a line is ever quoted: it may hold a secret that somebody put there unhashed.
    if len(fields) < 2 or not is_name(fields[0]):
        raise ConfigError(setting, f"{place} is not NAME HASH", "Write what `warmroute key NAME` prints.")
    digest = _DIGEST.fullmatch(fields[1])
    if digest is None:
        raise ConfigError(
            setting, f"{place} has no sha256:HEX behind the name", "Keys are kept hashed: `warmroute key`."
        )
    numbers: dict[str, int] = {}
    for field in fields[2:]:
        name, _, value = field.partition("=")
        low, high = (-PRIORITY_MAX, PRIORITY_MAX) if name == "priority" else (1, _LIMIT_MAX)
        known = name in ("requests_per_min", "tokens_per_min", "priority") and name not in numbers
        if not known or not re.fullmatch(r"-?[0-9]{1,13}", value) or not low <= int(value) <= high:
            raise ConfigError(
                setting,
                f"{place} has something behind the hash that is no limit",
                "Known: requests_per_min=N, tokens_per_min=N (above 0) and priority=N, each once.",
            )
        numbers[name] = int(value)
    return ApiKey(
        name=fields[0],
        digest=bytes.fromhex(digest[1]),
        requests_per_min=numbers.get("requests_per_min"),
        tokens_per_min=numbers.get("tokens_per_min"),
        priority=numbers.get("priority", 0),
    )
