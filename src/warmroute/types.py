"""The nouns of the field, as types: what looks alike but is not must not be mixed up.

Everything here is a value: frozen, hashable where that helps, free of behaviour beyond what its name promises. Layers
above speak in these words only; DESIGN's table "Words" is their dictionary.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NewType, TypeAlias

BlockHash: TypeAlias = int | bytes
"""The hash an engine published for a block: opaque, of either sign or a digest, meaningful only within one worker."""

PrefixHash = NewType("PrefixHash", int)
"""Our chained 64-bit hash over token ids and extra keys: equal content gives an equal PrefixHash everywhere."""

WorkerId = NewType("WorkerId", int)
"""Number of a worker in this process (0 <= id < 2**64). Never reused while the process lives."""

LeaseId = NewType("LeaseId", int)
"""Number of an in-flight claim on a worker."""

TokenIds: TypeAlias = Sequence[int]
"""Token ids of one prompt: a list, or any buffer of unsigned 32-bit integers (`array('I')`, memoryview, numpy)."""


class Medium(enum.IntEnum):
    """Where a block lies, from the fastest to the slowest. The engines' own names are mapped by the wire dialects."""

    GPU = 0
    CPU = 1
    STORAGE = 2


class TrustState(enum.StrEnum):
    """How far a worker's view may be believed."""

    LIVE = "LIVE"
    """In sync: every event batch up to now has been applied."""
    REPLAYING = "REPLAYING"
    """Catching up: batches are being replayed and are not complete yet."""
    DEGRADED = "DEGRADED"
    """Known to be incomplete: something was lost that a replay could not bring back."""
    BLIND = "BLIND"
    """No events: nothing is known of this worker's cache."""


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust state with the reason for it and since when.

    `since` is in seconds of the clock that the caller uses for `now` everywhere (monotonic in production, virtual in
    simulations).
    """

    state: TrustState
    reason: str
    since: float
    belief: float = 1.0
    """Share of what is predicted of the worker that came true lately, if its predictions fail; else 1."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One reachable HTTP address."""

    host: str
    port: int
    tls: bool = False
    authority: str = field(init=False, repr=False, compare=False)
    """`host:port`, IPv6 hosts in brackets: the Host header and the name that users see."""
    url: str = field(init=False, repr=False, compare=False)
    """`http://host:port`, IPv6 hosts in brackets."""

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "authority", f"{host}:{self.port}")
        object.__setattr__(self, "url", f"{'https' if self.tls else 'http'}://{self.authority}")

    def __hash__(self) -> int:
        return hash(self.authority)  # which a string computes once


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of an engine's `/v1/models`."""

    id: str
    parent: str | None = None
    """The base model's id if this is a LoRA adapter; None for a base model."""
    max_model_len: int | None = None
    created: int = 0
    owned_by: str = "vllm"
    root: str | None = None
    """Where its weights were loaded from, as the engine says."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One KV cache: one data-parallel rank of one endpoint. The unit of index, load and score."""

    id: WorkerId
    endpoint: Endpoint
    rank: int = 0
    ranks: int = 1
    """How many data-parallel ranks the endpoint has; more than one means that requests are pinned to a rank."""
    models: tuple[ModelInfo, ...] = ()
    trust: Trust = field(default=Trust(TrustState.BLIND, "not connected yet", 0.0))
    block_size: int | None = None
    """Tokens per block as the engine's metrics say: used only until its events have shown it."""
    kv_tokens_max: int | None = None
    """Tokens that its GPU cache has room for, as the engine's metrics say."""
    version: str | None = None
    """Release of the engine, if it says."""
    ready: bool = True
    """Whether requests may be sent here now (reachable, not draining)."""
    weight: float = 1.0
    """How much of the work it should have beside one of weight 1. Above 0 if it is ready."""

    name: str = field(init=False, repr=False, compare=False)
    """What users see: `host:port`, with `#rank` behind it where there are several ranks."""

    def __post_init__(self) -> None:
        authority = self.endpoint.authority
        object.__setattr__(self, "name", f"{authority}#{self.rank}" if self.ranks > 1 else authority)


class Fleet:
    """An immutable snapshot of the workers. A change makes a new one; a decision sees exactly one."""

    __slots__ = ("_by_id", "_by_model", "_models", "workers")

    def __init__(self, workers: Sequence[Worker] = ()) -> None:
        self.workers = tuple(workers)
        self._by_id = {worker.id: worker for worker in self.workers}
        by_model: dict[str, list[Worker]] = {}
        self._models: dict[str, ModelInfo] = {}
        for worker in self.workers:
            for model in worker.models:
                by_model.setdefault(model.id, []).append(worker)
                self._models.setdefault(model.id, model)
        self._by_model = {model: tuple(serving) for model, serving in by_model.items()}

    def __repr__(self) -> str:
        return f"Fleet({', '.join(f'{w.name}:{w.trust.state}' for w in self.workers)})"

    def get(self, worker: WorkerId) -> Worker | None:
        """The worker of that id, or None."""
        return self._by_id.get(worker)

    def serving(self, model: str) -> tuple[Worker, ...]:
        """All workers that serve `model`, ready or not; empty if none does."""
        return self._by_model.get(model, ())

    def lora(self, model: str | None) -> str | None:
        """The adapter's name if `model` is a LoRA adapter, else None."""
        info = self._models.get(model) if model is not None else None
        return info.id if info is not None and info.parent is not None else None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The union of all workers' models, in order of appearance."""
        return tuple(self._models.values())
