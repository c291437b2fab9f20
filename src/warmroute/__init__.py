"""Warmroute routes every LLM request to the engine whose KV cache is already warm for it.

As a library: build a `Router` over a `make_index()`, feed the index with decoded event batches, and `pick`;
docs/library.md shows how. A name is imported when it is first used, so `import warmroute` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "config.tree": ("EventsConfig", "RoutingConfig"),
    "core.decision": ("Decision", "PickRequest", "Reason"),
    "core.index": ("PrefixIndex", "make_index"),
    "core.policies": ("Candidates", "Policy"),
    "core.router": ("Router",),
    "core.wire": ("decode_batch", "decode_pub"),
    "errors": ("NoWorkerError", "WarmrouteError", "WireError"),
    "service.ingest": ("Ingest", "WorkerStream"),
    "service.ports": ("EventAddress", "EventSource"),
    "types": ("Endpoint", "Fleet", "ModelInfo", "Trust", "TrustState", "Worker", "WorkerId"),
}
"""Module -> the public names that live there. `__init__.pyi` says the same to type checkers."""

__all__ = sorted(name for names in _HOMES.values() for name in names)  # noqa: PLE0605 - the table says it once


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
