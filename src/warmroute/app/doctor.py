"""`warmroute doctor`: see what there is to be seen of each engine, have it judged, and show it.

Everything is asked of the engine as the gateway would ask, by the same code; the only addition is the look at what
listens on its event ports. Nothing is changed on the engine. Only with `send_request` a prompt of a few blocks is
computed there, twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import zip_longest

import aiohttp
import msgspec
import zmq

from warmroute.app.listeners import tls_to_engines
from warmroute.app.tokenizing import local_tokenizer
from warmroute.config.tree import Config, EngineConfig
from warmroute.edge.engine_api import HttpEngineApi
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.edge.zmq import zmq_event_sources
from warmroute.edge.zmtp import identify
from warmroute.errors import EngineError, TokenizeError
from warmroute.service.addressing import endpoint_of, engine_key, event_addresses
from warmroute.service.doctor.facts import EngineReport, HttpFacts, PeerFacts, StreamFacts, TokenizerFacts, TrialFacts
from warmroute.service.doctor.watch import Watch
from warmroute.service.ports import EventAddress, EventSourceFactory, Tokenizer
from warmroute.service.tokens import probes
from warmroute.types import Endpoint, ModelInfo, TokenIds, Worker, WorkerId

SETTLE_S_MAX = 10.0
"""A stream that is not caught up by then is judged as it stands."""
EVENT_S_MAX = 5.0
"""Events usually come before the answer does; on starved engines later."""
TRIAL_BLOCKS = 2
TRIAL_TOKENS = range(100, 1000)
"""Ids that every vocabulary has."""


class _Usage(msgspec.Struct):
    class Details(msgspec.Struct):
        cached_tokens: int | None = None

    prompt_tokens_details: Details | None = None


class _Completion(msgspec.Struct):
    usage: _Usage | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)


class Doctor:
    """Sees to engines, all with the same settings: `keys` of those that want one, `local`, the tokenizer in process."""

    def __init__(
        self,
        config: Config,
        session: aiohttp.ClientSession,
        sources: EventSourceFactory,
        local: Tokenizer | None,
        keys: Mapping[Endpoint, str],
        *,
        send_request: bool,
    ) -> None:
        self._config = config
        self._timeout_s = config.membership.probe_timeout_s
        self._api = HttpEngineApi(session, self._timeout_s, keys)
        self._remote = RemoteTokenizer(session, None, config.tokenizer.timeout_s, keys)
        self._sources = sources
        self._local = local
        self._send_request = send_request

    async def see(self, engine: EngineConfig) -> EngineReport:
        """Everything about one engine. Raises ConfigError if its URL is none."""
        endpoint = endpoint_of(engine.url)
        http = await self._api.inspect(endpoint)
        wanted = self._config.events.enabled and engine.events
        report = EngineReport(engine, endpoint, http, events_wanted=wanted)
        if http.engine is None:
            return report
        addresses = event_addresses(self._config, engine, endpoint, http.engine) if wanted else {}
        model = next((each for each in report.models if each.parent is None), None)
        streams = (self._stream(report, rank, each) for rank, each in addresses.items())
        tokenizer, seen = await asyncio.gather(self._tokenizer(endpoint, model), asyncio.gather(*streams))
        return replace(report, tokenizer=tokenizer, streams=tuple(seen))

    # The event plane.

    async def _stream(self, engine: EngineReport, rank: int, address: EventAddress | None) -> StreamFacts:
        if address is None:
            return StreamFacts(rank, None)
        publisher, replay = await asyncio.gather(self._peer(address.endpoint), self._peer(address.replay_endpoint))
        stream = StreamFacts(rank, address, publisher, replay)
        if publisher is None or not publisher.publishes:
            return stream
        worker = Worker(
            WorkerId(rank),
            engine.endpoint,
            rank=rank,
            ranks=engine.http.ranks or 1,
            models=engine.models,
            block_size=engine.block_size,
        )
        # What cannot answer a replay must not cost the wait for it; and whatever topic there is, is to be seen.
        replays = replay is not None and replay.replays
        heard = replace(address, topic="", replay_endpoint=address.replay_endpoint if replays else None)
        watch = Watch(worker, self._config.events, time.monotonic, time.time)
        try:
            watch.start(self._sources(heard))
            await watch.settled(SETTLE_S_MAX)
            trial = await self._trial(engine.http, worker, watch) if self._send_request else None
            return replace(stream, followed=watch.facts(), trial=trial)
        finally:
            watch.close()

    async def _peer(self, address: str | None) -> PeerFacts | None:
        """What answers at an address; None for no address, or one that nobody can connect to."""
        try:
            return None if address is None else await identify(address, self._timeout_s)
        except ValueError:
            return None

    async def _trial(self, http: HttpFacts, worker: Worker, watch: Watch) -> TrialFacts:
        model = next((each for each in worker.models if each.parent is None), None)
        if model is None:
            return TrialFacts("it serves no model")
        if worker.ranks > 1 and http.software != "vllm":
            return TrialFacts("requests cannot be pinned to a rank of this engine")
        size = watch.block_size or 16
        n_tokens = TRIAL_BLOCKS * size + size // 2 + 1
        if model.max_model_len is not None:
            n_tokens = min(n_tokens, model.max_model_len - 1)
        if n_tokens <= size:
            return TrialFacts(f"no block of {size} tokens fits into its {model.max_model_len} tokens")
        prompt = random.SystemRandom().choices(TRIAL_TOKENS, k=n_tokens)
        rank = worker.rank if worker.ranks > 1 else None
        try:
            before = watch.applied
            await self._complete(worker.endpoint, model, prompt, rank)
            batches = await watch.batches(more_than=before, timeout_s=EVENT_S_MAX) - before
            predicted = watch.predicted(prompt, model)
            reported = await self._complete(worker.endpoint, model, prompt, rank)
        except EngineError as error:
            return TrialFacts(str(error))
        return TrialFacts(None, batches, n_tokens, predicted, reported)

    async def _complete(self, endpoint: Endpoint, model: ModelInfo, prompt: TokenIds, rank: int | None) -> int | None:
        """Have one token made; how much of the prompt was cached, if the engine says. Raises EngineError."""
        body = {"model": model.id, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        status, answer = await self._api.complete(endpoint, msgspec.json.encode(body), rank)
        if status != 200:
            raise EngineError(f"/v1/completions answered {status}: {answer[:200].decode('utf-8', 'replace')}")
        try:
            usage = _COMPLETION.decode(answer).usage
        except msgspec.DecodeError as error:
            raise EngineError(f"/v1/completions answered what is no completion: {error}") from error
        details = usage.prompt_tokens_details if usage else None
        return details.cached_tokens if details else None

    # Tokens.

    async def _tokenizer(self, endpoint: Endpoint, model: ModelInfo | None) -> TokenizerFacts | None:
        if model is None or self._config.tokenizer.mode == "off":
            return None
        answers: list[TokenIds | None] = []
        refusal = difference = None
        for number, probe in enumerate(probes(model.id)):
            try:
                theirs = await self._remote.tokens(probe, endpoint)
            except TokenizeError as error:
                refusal = str(error)
                answers.append(None)
                if error.reason in ("timeout", "unreachable"):
                    break
                continue
            answers.append(theirs)
            if self._local is not None and difference is None:
                what = f"sample {number} ({'a chat' if probe.chat else 'a text'})"
                try:
                    difference = _difference(what, await self._local.tokens(probe, endpoint), theirs)
                except TokenizeError as error:
                    if error.reason != "unsupported":
                        difference = f"{what}: the one in process fails: {error}"
        return TokenizerFacts(answers, refusal, local=self._local is not None, difference=difference)


def _difference(what: str, ours: TokenIds, theirs: TokenIds) -> str | None:
    pairs = enumerate(zip_longest(ours, theirs))
    return next(
        (
            f"{what}: at token {at} the one in process says {mine}, the engine {its}"
            for at, (mine, its) in pairs
            if mine != its
        ),
        None,
    )


async def examine(config: Config, engines: Sequence[EngineConfig], *, send_request: bool = False) -> list[EngineReport]:
    """Everything about all of them, in order. Raises ConfigError."""
    async with AsyncExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        connector = aiohttp.TCPConnector(ssl=tls_to_engines(replace(config, engines=tuple(engines))) or True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        sources = zmq_event_sources(context, config.events)
        wanted = {endpoint_of(engine.url): engine_key(config, engine) for engine in engines}
        keys = {endpoint: key for endpoint, key in wanted.items() if key is not None}
        local = local_tokenizer(config.tokenizer)
        doctor = Doctor(config, session, sources, local, keys, send_request=send_request)
        return list(await asyncio.gather(*map(doctor.see, engines)))


def chosen(config: Config, urls: Sequence[str]) -> list[EngineConfig]:
    """The engines to see to: those named, with their settings where they are configured; none named: all."""
    if not urls:
        return list(config.engines)
    known = {endpoint_of(engine.url): engine for engine in config.engines}
    return [known.get(endpoint_of(url), EngineConfig(url=url)) for url in urls]
