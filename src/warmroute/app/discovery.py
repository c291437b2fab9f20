"""Where engines are found besides the configuration: composition of the sources that it asks for.

Invariant: a source that cannot be set up at all is the operator's error, at start; one that is away later keeps the
last engines it found.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from warmroute.config.contradictions import check_engines
from warmroute.config.document import parse_document
from warmroute.config.ranges import check_key, namespaces_of
from warmroute.config.sources import Given, Origin, Source, shown
from warmroute.config.tree import Config, EngineConfig
from warmroute.config.values import engine_values
from warmroute.core.pods import NAME, PREFIXES, Sighting, read_pod
from warmroute.core.roster import Listed
from warmroute.core.slices import SERVICE_LABEL, read_slice
from warmroute.edge.files import WatchedFiles, read_text
from warmroute.errors import ConfigError
from warmroute.service import discovery
from warmroute.service.discovery import Discovery
from warmroute.service.reconciler import Reconciler
from warmroute.service.reflector import Collection, Reflector

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmroute.edge.kubernetes import Kubernetes

FILE_SETTING = "discovery.file.path"


def discovers(config: Config) -> bool:
    """Whether engines may come that are not listed."""
    found = config.discovery
    return found.kubernetes.enabled or found.service.name is not None or found.file.path is not None


class Sources:
    """All sources of engines that come and go. `start` first; `run` follows the cluster, `tick` looks at the file."""

    def __init__(self, config: Config, reconciler: Reconciler) -> None:
        self.discoveries: list[Discovery] = []
        self.file: WatchedFiles | None = None
        self._config = config.discovery
        self._reconciler = reconciler
        self._cluster: Kubernetes | None = None

    async def start(self) -> None:
        """Read the file, find the API server. Raises ConfigError."""
        path = self._config.file.path
        if path is not None:
            self.file = WatchedFiles((path,), functools.partial(self._take_file, path))
        if not (self._config.kubernetes.enabled or self._config.service.name):
            return
        from warmroute.edge.kubernetes import connect  # noqa: PLC0415 - an extra, slow to import

        self._cluster = await connect(self._config.kubernetes.kubeconfig, self._config.kubernetes.context)
        if self._config.kubernetes.enabled:
            collections = _pods(self._config.kubernetes.namespaces or self._cluster.namespace, self._selectors())
            self._follow("kubernetes", collections, read_pod)
        if (service := self._config.service).name is not None:
            place = f"/apis/discovery.k8s.io/v1/namespaces/{service.namespace or self._cluster.namespace}"
            read = functools.partial(read_slice, port_name=service.port_name, events=service.events)
            slices = Collection(f"{place}/endpointslices", f"{SERVICE_LABEL}={service.name}")
            self._follow("service", [slices], read)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for each in self.discoveries:
                tasks.create_task(each.run(), name=f"discover by {each.source}")

    def tick(self) -> None:
        """Take up a file that changed."""
        if self.file is not None:
            self.file.look()

    async def close(self) -> None:
        """Leave the API server."""
        if self._cluster is not None:
            await self._cluster.close()

    def view(self) -> list[dict[str, Any]]:
        """What users see of the sources."""
        views = [each.view() for each in self.discoveries]
        if self.file is not None:
            views.append({"source": "file", "in_step": not self.file.problem, "problem": self.file.problem})
        return views

    def in_step(self) -> dict[tuple[str, ...], float]:
        """(source,) -> 1 if what is known is what there is."""
        own = {} if self.file is None else {("file",): float(self.file.problem is None)}
        return discovery.in_step(self.discoveries) | own

    def events(self) -> Counter[tuple[str, ...]]:
        """(source, event) -> what happened while following."""
        own = {} if self.file is None else {"reloads": self.file.reloads, "reload_failures": self.file.failures}
        return discovery.counted(self.discoveries) + Counter({("file", event): n for event, n in own.items()})

    def objects(self) -> Counter[tuple[str, ...]]:
        """(source, state) -> objects of the cluster."""
        return discovery.objects(self.discoveries)

    def _follow(self, source: str, collections: Sequence[Collection], read: Callable[[bytes], Sighting]) -> None:
        assert self._cluster is not None  # noqa: S101 - start has made it
        chance = random.Random().random  # noqa: S311 - spreads gateways, hides nothing
        reflectors = [Reflector(self._cluster, each, read, time.monotonic, chance) for each in collections]
        self.discoveries.append(Discovery(source, reflectors, self._reconciler))

    def _selectors(self) -> Sequence[str]:
        """Of a selector that is not given: pods that say what they serve, under either prefix."""
        given = self._config.kubernetes.selector
        return [given] if given is not None else [prefix + NAME for prefix in PREFIXES]

    def _take_file(self, path: str) -> None:
        self._reconciler.replace("file", map(Listed, read_engines(path)))


def read_engines(path: str) -> list[EngineConfig]:
    """The engines that a file lists. Raises ConfigError."""
    document = parse_document(read_text(path, FILE_SETTING), path)
    listed = document.get("engines") if isinstance(document, dict) else document
    if isinstance(document, dict) and document.keys() != {"engines"}:
        problem = f"{path!r} has other keys than engines: {', '.join(map(str, document))}"
        raise ConfigError(FILE_SETTING, problem, "Give it a list of engines, or `engines:` alone.")
    if not isinstance(listed, list):
        raise ConfigError(FILE_SETTING, f"{path!r} holds {shown(listed)}, no list of engines", "Write [] for none.")
    source = Source(Origin.FILE, path)
    engines = engine_values(Given(listed, source))
    check_engines(engines, source)
    return [_with_key(engine) for engine in engines]


def _with_key(engine: EngineConfig) -> EngineConfig:
    if engine.api_key_file is None:
        return engine
    key = read_text(engine.api_key_file, f"{FILE_SETTING}: api_key_file").strip()
    try:
        check_key(key)
    except ValueError as error:
        raise ConfigError(FILE_SETTING, f"{engine.api_key_file!r} {error}", "Write the key alone into it.") from None
    return replace(engine, api_key=key)


def _pods(namespaces: str, selectors: Sequence[str]) -> list[Collection]:
    return [
        Collection("/api/v1/pods" if namespace == "*" else f"/api/v1/namespaces/{namespace}/pods", selector)
        for namespace in namespaces_of(namespaces)
        for selector in selectors
    ]
