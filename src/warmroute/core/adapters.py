"""Which weights a LoRA adapter's name stands for, on each worker.

Engines announce an adapter's blocks by its name. vLLM keys its cache by name *and path* since 0.31: loaded again from
elsewhere, the same name finds nothing of what it left, and all of it once it is pointed back. So blocks are kept under
a key: the name, with the path behind it where that is another one than the first. What an engine held under the old
path stays known, as it stays cached.

Invariant: a worker's key for a name changes only when that name is loaded from another path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from warmroute.types import Fleet, Worker, WorkerId

_KEYED_BY_PATH_SINCE = (0, 31)

T = TypeVar("T")


class Adapters:
    """Adapter names and the paths they were loaded from, by worker."""

    def __init__(self) -> None:
        self._loaded: dict[WorkerId, dict[str, tuple[str, str]]] = {}
        """Worker -> name -> (first path, path now)."""
        self._renamed: set[WorkerId] = set()

    def loaded(self, worker: Worker, name: str, path: str) -> None:
        """`worker` has loaded `path` under `name`. No-op for releases that know adapters by name alone."""
        if not _keyed_by_path(worker.version):
            return
        names = self._loaded.setdefault(worker.id, {})
        first, _ = names.get(name, (path, path))
        names[name] = first, path
        self._renamed.discard(worker.id)
        if any(first != now for first, now in names.values()):
            self._renamed.add(worker.id)

    def learn(self, fleet: Fleet) -> None:
        """Take up what the engines say of their adapters: some were loaded past us, or before us."""
        for worker in fleet.workers:
            for model in worker.models:
                if model.parent is not None and model.root is not None:
                    self.loaded(worker, model.id, model.root)

    def key(self, worker: WorkerId, name: str) -> str:
        """What the index knows the blocks by that `worker` stores for `name` now."""
        first, now = self._loaded.get(worker, {}).get(name, ("", ""))
        return name if first == now else f"{name}\0{now}"

    def renames(self, worker: WorkerId) -> bool:
        """Whether any of the worker's keys is not the name itself."""
        return worker in self._renamed

    def keys(self, workers: Mapping[WorkerId, T], name: str | None) -> dict[str | None, Mapping[WorkerId, T]]:
        """The keys for `name` in use on `workers`, and who uses which: nearly always one, the name itself."""
        if name is None or not self._renamed:
            return {name: workers}
        found: dict[str | None, dict[WorkerId, T]] = {}
        for worker, value in workers.items():
            found.setdefault(self.key(worker, name), {})[worker] = value
        return {**found}

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone."""
        self._loaded.pop(worker, None)
        self._renamed.discard(worker)


def _keyed_by_path(version: str | None) -> bool:
    parts = (version or "").split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return True  # unknown, or built from a newer source
    return (int(parts[0]), int(parts[1])) >= _KEYED_BY_PATH_SINCE
