"""How a simulated engine is set up, and the faults it can be told to have.

Invariant: options that vLLM itself would refuse to start with are refused here too, by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from warmroute.config.addresses import PORT_MAX
from warmroute.errors import ConfigError
from warmroute.testing.engine.release import HashForm, Release
from warmroute.testing.events import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Everything about one simulated engine. The defaults are a small, infinitely fast vLLM 0.32 on free ports."""

    model: str = "tiny"
    """Name it serves its model under."""
    loras: tuple[str, ...] = ()
    """Adapters loaded from the start."""
    release: str = "0.32"
    """vLLM release whose wire it speaks."""
    host: str = "127.0.0.1"
    """Address all its sockets listen on."""
    port: int = 0
    """HTTP port; 0: one the system chooses."""
    events: bool = True
    """Whether it publishes KV cache events."""
    events_port: int = 0
    """Port rank 0 publishes on (rank r: + r); 0: ones the system chooses."""
    replay_port: int = 0
    """Port of rank 0's replay socket (rank r: + r); 0: ones the system chooses."""
    events_bind: bool = True
    """False: its PUB socket connects to the event port, as vLLM's does without a `*` in its endpoint."""
    replay: bool = True
    """Whether it has replay sockets."""
    topic: str = ""
    """First frame of every published message."""
    buffer_steps: int = 10_000
    """Batches kept for replay."""
    events_form: Form | None = None
    """Events as maps or as arrays; None: as the release does."""
    hash_form: HashForm | None = None
    """Published hashes: unsigned or signed 64-bit numbers, or the digest's bytes; None: as the release does."""
    block_size: int = 16
    """Tokens in a block."""
    num_blocks: int = 1024
    """Physical blocks per rank; one of them is never used."""
    prefix_caching: bool = True
    """False: nothing is taken from the cache, and nothing is published."""
    max_model_len: int = 8192
    """Longest prompt with its output, in tokens."""
    max_num_seqs: int = 128
    """Sequences in one step."""
    max_num_batched_tokens: int = 8192
    """Tokens computed in one step."""
    data_parallel_size: int = 1
    """Ranks, each with its own cache, queue and event sockets."""
    prefill_per_token_s: float = 0.0
    """Seconds for each prompt token that is not cached."""
    decode_per_token_s: float = 0.0
    """Seconds for a step in which running sequences get their next token."""
    jitter: float = 0.0
    """Share by which a step's time varies, either way."""
    prompt_tokens_details: bool = True
    """Whether answers say how many prompt tokens were cached (`vllm serve --enable-prompt-tokens-details`)."""
    api_key: str = ""
    """Key that paths below /v1 ask for, as with `vllm serve --api-key`; empty: none."""
    output_tokens: int = 64
    """Length of a chat answer whose request does not say."""
    seed: int = 0
    """Decides the jitter and the generated text."""

    def __post_init__(self) -> None:
        Release.of(self.release)
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "data_parallel_size", "output_tokens"):
            self._require(name, getattr(self, name) >= 1, "Give at least 1.")
        self._require("num_blocks", self.num_blocks >= 2, "Give at least 2: one block is never used.")
        self._require("max_model_len", self.max_model_len >= 2, "Give at least 2.")
        self._require("events_port", bool(self.events_bind or self.events_port), "Give a port to connect to.")
        capacity = (self.num_blocks - 1) * self.block_size
        self._require(
            "max_model_len", self.max_model_len <= capacity, f"The cache holds {capacity} tokens: make it larger."
        )
        for name in ("port", "events_port", "replay_port"):
            self._require(name, 0 <= getattr(self, name) <= PORT_MAX, f"Give 0 to {PORT_MAX}.")
        self._require("jitter", 0 <= self.jitter <= 1, "Give a share from 0 to 1.")
        for name in ("prefill_per_token_s", "decode_per_token_s", "buffer_steps"):
            self._require(name, getattr(self, name) >= 0, "Give 0 or more.")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise ConfigError(name, f"{getattr(self, name)} is out of range", remedy)


@dataclass(slots=True)
class Faults:
    """What is to go wrong. A number counts down as it happens; -1 goes on until it is set to 0."""

    drop_batches: int = 0
    """Batches that subscribers miss; a replay has them."""
    swallow_batches: int = 0
    """Batches that are gone before they take a number: no gap shows it."""
    lose_batches: int = 0
    """Batches that take a number and are gone, from the replay as well."""
    garble_batches: int = 0
    """Batches whose payload is no msgpack."""
    foreign_events: int = 0
    """Batches with an additional event of an unknown kind."""
    silent_replays: int = 0
    """Replay requests that get no answer."""
    misreport_answers: int = 0
    """Answers that say that nothing was cached, whatever was."""
    refuse_requests: int = 0
    """Generation requests answered with 503."""
    break_answers: int = 0
    """Generation requests whose connection is cut before the answer is complete."""
    break_after_tokens: int = 1
    """How many tokens of a broken stream still get out."""
    unhealthy_probes: int = 0
    """`/health` requests answered with 503."""

    def happens(self, name: str) -> bool:
        """Whether the fault `name` happens this time; counts it down."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0


@dataclass(slots=True)
class Adapter:
    """A loaded LoRA adapter."""

    name: str
    path: str
    number: int
    """The engine's running number; another one after each load."""


@dataclass(slots=True)
class Adapters:
    """The adapters of one engine, by name."""

    by_name: dict[str, Adapter] = field(default_factory=dict)
    loads: int = 0

    def load(self, name: str, path: str) -> None:
        """Load, or load anew, an adapter."""
        self.loads += 1
        self.by_name[name] = Adapter(name, path, self.loads)
