"""What was seen of one engine, by whatever means: values only, so that a check needs no engine to be tested.

Invariant: None means "not known", never "no".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from warmroute.config.tree import EngineConfig
from warmroute.service.ports import EngineFacts, EventAddress
from warmroute.types import Endpoint, ModelInfo, Trust

Software: TypeAlias = Literal["vllm", "sglang"]


class Listening(enum.StrEnum):
    """What answers at an address."""

    OPEN = "open"
    """A ZMQ socket, of the kind that is said beside it."""
    REFUSED = "refused"
    """The host answers that nobody listens there."""
    SILENT = "silent"
    """Nothing comes back: packets are dropped on the way, or whoever listens says nothing."""
    UNRESOLVED = "unresolved"
    """The host name means no address."""
    FOREIGN = "foreign"
    """Somebody listens who does not speak ZMQ, or not without credentials."""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What answers at one ZMQ address."""

    address: str
    listening: Listening
    socket_type: str | None = None
    """`PUB`, `ROUTER`, ... if it is OPEN."""
    detail: str = ""

    @property
    def publishes(self) -> bool:
        """Whether it is a publisher's event socket."""
        return self.socket_type in ("PUB", "XPUB")

    @property
    def replays(self) -> bool:
        """Whether it can be a publisher's replay socket."""
        return self.socket_type == "ROUTER"


@dataclass(frozen=True, slots=True)
class SaidSource:
    """One rank's publisher, as the engine itself says it was set up."""

    endpoint: str | None = None
    replay_endpoint: str | None = None
    topic: str = ""
    publisher: str | None = None
    enabled: bool = True
    buffer_steps: int | None = None


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """What an engine says over HTTP."""

    problem: str | None = None
    """Why there is nothing to be said of it, as a sentence; None if it answered as an engine does."""
    problem_code: str | None = None
    """The finding that the problem is."""
    engine: EngineFacts | None = None
    software: Software | None = None
    version: str | None = None
    sources: Mapping[int, SaidSource] | None = None
    """Rank -> its publisher, {} if it says that nothing is published; None if it does not say."""
    cache: Mapping[str, str] = field(default_factory=dict)
    """Labels of `vllm:cache_config_info`, or SGLang's settings under the same names."""
    ranks: int | None = None
    """Data-parallel ranks."""
    skew_s: float | None = None
    """How far the engine's clock is ahead of ours; its resolution is a second."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One rank's event stream."""

    rank: int
    address: EventAddress | None
    """Where it is followed, as configured or as the engine says; None: nowhere."""
    publisher: PeerFacts | None = None
    replay: PeerFacts | None = None
    followed: FollowedFacts | None = None
    """What the gateway's own code made of the stream; None if there was nothing to follow."""
    trial: TrialFacts | None = None


@dataclass(frozen=True, slots=True)
class FollowedFacts:
    """A stream after it was followed for a moment by the gateway's own code."""

    trust: Trust
    first_seq: int | None = None
    """Number of the oldest batch that the replay had."""
    replay_ended: bool = False
    batches: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Events and messages that could not be read, by reason."""
    unknown_media: int = 0
    rank_mismatches: int = 0
    topics: frozenset[str] = frozenset()
    """Topics seen; releases before 0.26 show none in a replay."""
    block_sizes: tuple[int, ...] = ()
    newest_ts: float | None = None
    """When the newest batch was made, by the engine's clock in Unix seconds."""
    at: float = 0.0
    """Our wall clock when all this was noted."""


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """The same small prompt sent twice: what was predicted for the second, and what the engine reported."""

    problem: str | None = None
    """Why it could not be done."""
    batches: int = 0
    """Batches that arrived between the first request and the second."""
    prompt_tokens: int = 0
    predicted_tokens: int = 0
    reported_tokens: int | None = None
    """None: the engine does not report it."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Sample texts and chats, tokenized by the engine, and in process if there is a tokenizer."""

    answers: Sequence[Sequence[int] | None] = ()
    """The engine's token ids for each sample; None where it refused."""
    refusal: str | None = None
    """Why it refused the last one it refused."""
    local: bool = False
    """Whether a tokenizer in process was compared with it."""
    difference: str | None = None
    """The first difference between the two, as a clause."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Everything seen of one engine."""

    config: EngineConfig
    endpoint: Endpoint
    http: HttpFacts
    streams: tuple[StreamFacts, ...] = ()
    tokenizer: TokenizerFacts | None = None
    events_wanted: bool = True
    """False: our own configuration says not to follow this engine."""

    @property
    def url(self) -> str:
        """Its base URL."""
        return self.endpoint.url

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What it serves."""
        return self.http.engine.models if self.http.engine else ()

    @property
    def block_size(self) -> int | None:
        """Tokens per block, as it announces them."""
        return self.http.engine.block_size if self.http.engine else None

    @property
    def release(self) -> tuple[int, ...]:
        """Its version's numbers; () if they are not known."""
        return release_numbers(self.http.version)


def release_numbers(version: str | None) -> tuple[int, ...]:
    """`0.10.2.dev3+cpu` -> (0, 10, 2); () for what does not begin with a number."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(int(part) for part in found[1].split(".")[:3]) if found else ()
