"""Which tokenizer answers for a request, and what happens if none does.

A request without token ids is still routed, by load: this service never raises, it says why there are none. The
tokenizer in process is believed only where it was found to agree with the engine's own on a set of probes; where it
differs it is switched off, loudly, because wrong ids look exactly like a cold cache.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import traceback
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, TypeAlias

import msgspec

from warmroute.config.tree import TokenizerConfig
from warmroute.core.openai import RoutingRequest
from warmroute.errors import TokenizeError
from warmroute.service.ports import InstantTokenizer, Rest, Tokenizer
from warmroute.types import Endpoint, Fleet, TokenIds

_log = logging.getLogger(__name__)

FAILURES_MAX = 3
"""So many times in a row without an answer, and an address is left alone for a while: every one cost its timeout."""
PAUSE_S = 5.0

_NO_ANSWER = frozenset({"timeout", "unreachable"})


class Tokenized(msgspec.Struct, frozen=True, gc=False):
    """Token ids of a prompt, or why there are none."""

    token_ids: TokenIds | None
    reason: str | None = None


Waiting: TypeAlias = "Callable[[], Awaitable[Tokenized]]"
"""Token ids that must be waited for: a call, and no coroutine, which a client that leaves would leave unawaited."""


class Verdict(enum.Enum):
    """How the tokenizer in process compares with a model's engine."""

    SAME = "same"
    DIFFERS = "differs"
    INCOMPARABLE = "incomparable"
    """The engine has no `/tokenize`."""


class Tokens:
    """Token ids for requests. `local` and `remote` are None where they are not to be used.

    `clock` is monotonic, in seconds. `counts` says how often each source gave the ids, or each reason kept them away;
    `latency_s` adds up, per source, how long that took.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        clock: Callable[[], float],
        local: Tokenizer | None = None,
        remote: Tokenizer | None = None,
    ) -> None:
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.latency_s: defaultdict[str, float] = defaultdict(float)
        self.verdicts: dict[str, Verdict] = {}
        """By base model."""
        self._config = config
        self._clock = clock
        self._local = None if config.mode in ("off", "remote") else local
        self._remote = None if config.mode == "off" else remote
        self._instant = self._local if isinstance(self._local, InstantTokenizer) else None
        self.given_up: Counter[str] = Counter() if self._instant is None else self._instant.given_up
        """Ways around the tokenizer in process that were found to be wrong."""
        self._bases: dict[str, str] = {}
        self._failures: Counter[Endpoint] = Counter()
        self._paused_until: dict[Endpoint, float] = {}
        self._warned: set[str] = set()
        self._comparing = asyncio.Lock()

    def ask(self, request: RoutingRequest, endpoint: Endpoint) -> Tokenized | Waiting:
        """Token ids of the request's prompt, at once if nobody must be waited for; `endpoint` serves its model.

        Never raises, nor does what it gives to be called and awaited.
        """
        if request.token_ids is not None:
            self.counts["given"] += 1
            return Tokenized(request.token_ids)
        if request.opaque is not None or not (self._local or self._remote):
            reason = request.opaque or "off"
            self.counts[reason] += 1
            return Tokenized(None, reason)
        if self._instant is None or not self._believed(request.model):
            return partial(self._wait, self._sources(request, endpoint), endpoint)
        started = self._clock()
        rest: Rest
        try:
            begun = self._instant.begin(request)
        except Exception as error:
            rest = partial(_fail, error)
        else:
            if not callable(begun):
                self.latency_s["local"] += self._clock() - started
                self.counts["local"] += 1
                return Tokenized(begun)
            rest = begun
        self.latency_s["local"] += self._clock() - started
        return partial(self._wait, [("local", rest), *self._sources(request, endpoint)[1:]], endpoint)

    async def of(self, request: RoutingRequest, endpoint: Endpoint) -> Tokenized:
        """What `ask` gives, waited for."""
        found = self.ask(request, endpoint)
        return found if isinstance(found, Tokenized) else await found()

    async def _wait(self, sources: Sequence[tuple[str, Rest]], endpoint: Endpoint) -> Tokenized:
        reason, source = "off", ""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                for source, rest in sources:
                    found = await self._token_ids(source, rest, endpoint)
                    if isinstance(found, str):
                        reason = found
                        continue
                    self.counts[source] += 1
                    return Tokenized(found)
        except TimeoutError:
            reason = "timeout"
            if source == "remote":
                self._failed(endpoint)
        self.counts[reason] += 1
        return Tokenized(None, reason)

    async def verify(self, fleet: Fleet) -> None:
        """Compare the tokenizer in process with each base model's engine, where that was not done yet. Never raises."""
        if self._local is None or self._remote is None:
            return
        async with self._comparing:
            for model in fleet.models:
                base = self._bases[model.id] = model.parent or model.id
                ready = next((worker for worker in fleet.serving(base) if worker.ready), None)
                if base not in self.verdicts and ready is not None:
                    verdict = await self._compare(base, ready.endpoint, self._local, self._remote)
                    if verdict is not None:
                        self.verdicts[base] = verdict

    def _sources(self, request: RoutingRequest, endpoint: Endpoint) -> list[tuple[str, Rest]]:
        """Whom to ask, in order. The second is asked for what the first cannot do."""
        named = [("local", self._local)] if self._believed(request.model) else []
        named.append(("remote", self._remote))
        return [(name, partial(source.tokens, request, endpoint)) for name, source in named if source is not None]

    def _believed(self, model: str) -> bool:
        """Whether the tokenizer in process may answer for the model: it agrees with the engine, or nobody can tell."""
        verdict = self.verdicts.get(self._bases.get(model, model))
        unproven = verdict is None and self._remote is not None and self._config.mode == "auto"
        return verdict is not Verdict.DIFFERS and not unproven

    async def _token_ids(self, source: str, rest: Rest, endpoint: Endpoint) -> TokenIds | str:
        """The ids, or the reason why there are none."""
        started = self._clock()
        if source == "remote" and self._paused_until.get(endpoint, 0.0) > started:
            return "paused"
        try:
            found = await rest()
        except TokenizeError as error:
            if source == "remote" and error.reason in _NO_ANSWER:
                self._failed(endpoint)
            self._warn_once(source, endpoint, error)
            return error.reason
        except Exception as error:  # whatever it is, a request must not fail for it
            where = "".join(traceback.format_tb(error.__traceback__))  # without its message, which may quote the prompt
            _log.error("a tokenizer failed, the request is routed by load: %s in\n%s", type(error).__name__, where)
            _log.debug("it failed with", exc_info=error)
            return "bug"
        finally:
            self.latency_s[source] += self._clock() - started
        if source == "remote":
            self._failures.pop(endpoint, None)
        return found

    def forget(self, endpoint: Endpoint) -> None:
        """The engine there is gone."""
        self._failures.pop(endpoint, None)
        self._paused_until.pop(endpoint, None)

    def _failed(self, endpoint: Endpoint) -> None:
        self._failures[endpoint] += 1
        if self._failures[endpoint] >= FAILURES_MAX:
            self._paused_until[endpoint] = self._clock() + PAUSE_S

    async def _compare(self, model: str, endpoint: Endpoint, local: Tokenizer, remote: Tokenizer) -> Verdict | None:
        """None if the engine did not answer: to be tried again."""
        compared = 0
        for probe in probes(model):
            try:
                ours = await local.tokens(probe, endpoint)
                theirs = await remote.tokens(probe, endpoint)
            except TokenizeError as error:
                if error.reason in ("refused", "unsupported"):
                    continue  # not every template takes tools or a system message; the others tell enough
                return None
            compared += 1
            if list(ours) != list(theirs):
                self._log_difference(model, endpoint, ours, theirs)
                return Verdict.DIFFERS
        if compared:
            _log.info("the tokenizer in process agrees with %s on %d probes for %s", endpoint.url, compared, model)
            return Verdict.SAME
        _log.warning(
            "%s answers no /tokenize for %s, so the tokenizer in process is used without having been compared; "
            "make sure tokenizer.path holds the files that the engine was started with",
            endpoint.url,
            model,
        )
        return Verdict.INCOMPARABLE

    def _log_difference(self, model: str, endpoint: Endpoint, ours: TokenIds, theirs: TokenIds) -> None:
        pairs = enumerate(zip_longest(ours, theirs))
        position, (our_token, their_token) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        _log.warning(
            "the tokenizer in process is switched off for %s: at token %d of a probe it says %s, %s says %s. Put the "
            "engine's own tokenizer.json and chat template into tokenizer.path, or leave it out; until then %s",
            model,
            position,
            our_token,
            endpoint.url,
            their_token,
            "the engines are asked for token ids" if self._remote else "requests with text are routed by load",
        )

    def _warn_once(self, source: str, endpoint: Endpoint, error: TokenizeError) -> None:
        if error.reason not in self._warned:
            self._warned.add(error.reason)
            where = f"{endpoint.url}/tokenize" if source == "remote" else "the tokenizer in process"
            _log.warning("%s made no token ids: %s. Such requests are routed by load, and counted", where, error.reason)
            _log.debug("it said", exc_info=error)  # engines and templates quote what they refuse


async def _fail(error: Exception) -> TokenIds:
    raise error


def probes(model: str) -> list[RoutingRequest]:
    """Requests on which two tokenizers that differ are likely to differ."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Zürich", "n": 1.0}'},
    }
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "number", "default": 0.5}}}
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "<b> & 'é'", "parameters": parameters}}
    ]
    user = {"role": "user", "content": "Hello,  world!\n\tnaïve 漢字 🙂 12345 "}
    system = {"role": "system", "content": "You are brief."}
    turn = {"role": "assistant", "content": " Hi there.\n"}
    called = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    called += [{"role": "tool", "tool_call_id": "call_1", "content": '{"t": 21}'}]
    parts = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    thought = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    special = {"role": "user", "content": "say <|im_end|> </s> <|eot_id|> <think>x</think> <bos> [INST]"}
    chats: list[dict[str, Any]] = [
        {"messages": [user]},
        {"messages": [system, user, turn, user]},
        {"messages": [user, turn], "add_generation_prompt": False, "continue_final_message": True},
        {"messages": [parts]},
        {"messages": [system, user], "add_special_tokens": True},
        {"messages": [special]},
        {"messages": [user], "tools": tools},
        {"messages": [user, *called, user], "tools": tools},
        {"messages": [user, thought, user], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    return [_chat_probe(model, fields) for fields in chats] + [
        _completion_probe(model, text)
        for text in (user["content"], special["content"], "\n\n  def f(x):\n    return x\n")
    ]


def _chat_probe(model: str, fields: dict[str, Any]) -> RoutingRequest:
    body = msgspec.json.encode({"model": model, **fields})
    return RoutingRequest(path="/v1/chat/completions", model=model, body=body, chat=True)


def _completion_probe(model: str, prompt: str) -> RoutingRequest:
    body = msgspec.json.encode({"model": model, "prompt": prompt})
    return RoutingRequest(path="/v1/completions", model=model, body=body, chat=False, prompt=prompt)
