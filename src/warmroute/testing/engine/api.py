"""The engine's HTTP surface: vLLM's paths, statuses and bodies, and `/faults`, which vLLM lacks.

Invariant: a client that goes away aborts its request at the next token, and everything it computed stays cached.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from warmroute.core import forms
from warmroute.testing.engine import metrics, tokenizer
from warmroute.testing.engine.answers import Answer, server_sent
from warmroute.testing.engine.form_answers import REWRITTEN
from warmroute.testing.engine.options import Faults
from warmroute.testing.engine.process import Process, Rank
from warmroute.testing.engine.requests import (
    Body,
    Refusal,
    bad_request,
    chat_prompt,
    completion_prompts,
    generation,
    read_body,
    rewritten,
)

_Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(process: Process) -> web.Application:
    """The application that serves one process."""
    return _Api(process).app


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


class _Api:
    def __init__(self, process: Process) -> None:
        self._process = process
        self.app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._answer_in_form])
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.post(forms.MESSAGES, self._chat),
                web.post(forms.RESPONSES, self._chat),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/metrics", self._metrics),
                web.get("/version", self._version),
                web.post("/reset_prefix_cache", self._reset),
                web.post("/v1/load_lora_adapter", self._load_lora),
                web.post("/v1/unload_lora_adapter", self._unload_lora),
                web.get("/faults", self._faults),
                web.post("/faults", self._set_faults),
            ]
        )
        if process.release.says_event_sources:
            self.app.router.add_get("/kv_event_sources", self._event_sources)

    @web.middleware
    async def _answer_in_form(self, request: web.Request, handler: _Endpoint) -> web.StreamResponse:
        key = self._process.options.api_key
        try:
            if key and request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
                return _json({"error": "Unauthorized"}, 401)
            response = await handler(request)
        except Refusal as refusal:
            error = refusal.body["error"]
            plain = {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
            response = _json(plain if request.path == forms.MESSAGES else refusal.body, refusal.status)
        except web.HTTPException as error:
            response = _json({"detail": error.reason}, error.status)
        if not response.prepared:
            _echo_request_id(request, response)
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        process, faults = self._process, self._process.faults
        raw = await request.read()
        if faults.happens("refuse_requests"):
            raise Refusal(503, "ServiceUnavailableError", "The engine was told to refuse this request.")
        body = read_body(raw, process)
        if request.path in REWRITTEN:
            body = rewritten(request.path, raw, body)
        wanted = generation(body, process, chat=chat, session_id=request.headers.get("X-Session-ID"))
        rank = self._rank(request)
        request_id = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        details = process.options.prompt_tokens_details
        answer = REWRITTEN.get(request.path, Answer)(
            body, wanted, chat=chat, request_id=request_id, now=process.time.now(), details=details
        )
        if faults.happens("misreport_answers"):
            answer.misreport()
        answer.named(body.model or process.options.model)
        tokens_left = faults.break_after_tokens if faults.happens("break_answers") else -1
        response = await self._open_stream(request, answer) if body.stream else None
        async with aclosing(rank.generate(wanted)) as tokens:
            async for token in tokens:
                if tokens_left == 0:
                    return _cut(request, response)
                tokens_left -= 1
                chunk = answer.add(token)
                if response:
                    await response.write(server_sent(chunk))
        if tokens_left >= 0:
            return _cut(request, response)
        if response is None:
            return _json(answer.whole())
        await response.write(b"".join(map(server_sent, answer.closing())) + answer.done)
        return response

    async def _open_stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        _echo_request_id(request, response)
        await response.prepare(request)
        if opening := answer.opening():
            await response.write(b"".join(map(server_sent, opening)))
        return response

    def _rank(self, request: web.Request) -> Rank:
        pinned = request.headers.get("X-data-parallel-rank")
        try:
            return self._process.rank_for(None if pinned is None else int(pinned))
        except (ValueError, IndexError):
            ranks = len(self._process.ranks)
            raise bad_request(f"X-data-parallel-rank {pinned!r} is out of range [0, {ranks}).") from None

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = read_body(await request.read(), self._process)
        if body.messages is None and not isinstance(body.prompt, str):
            raise bad_request("Either 'prompt', a text, or 'messages' must be given.", "prompt")
        tokens = completion_prompts(body)[0] if body.messages is None else chat_prompt(body)
        strings = [tokenizer.decode((token,)) for token in tokens] if body.return_token_strs else None
        limit = self._process.options.max_model_len
        return _json({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": strings})

    async def _detokenize(self, request: web.Request) -> web.Response:
        try:
            tokens = msgspec.json.decode(await request.read(), type=dict[str, Any]).get("tokens")
            prompts = completion_prompts(Body(prompt=tokens))
        except msgspec.DecodeError as error:
            raise bad_request(str(error)) from error
        return _json({"prompt": tokenizer.decode(prompts[0])})

    async def _models(self, _: web.Request) -> web.Response:
        process = self._process
        base = process.options.model
        common = {"object": "model", "created": int(process.started), "owned_by": "vllm"}
        models = [{"id": base, **common, "root": base, "parent": None, "max_model_len": process.options.max_model_len}]
        models += [
            {"id": adapter.name, **common, "root": adapter.path, "parent": base, "max_model_len": None}
            for adapter in process.adapters.by_name.values()
        ]
        return _json({"object": "list", "data": models})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._process.faults.happens("unhealthy_probes") else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=metrics.render(self._process))

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": self._process.release.name})

    async def _event_sources(self, _: web.Request) -> web.Response:
        binds = self._process.options.events_bind
        sources = {
            str(rank): {
                "endpoint": _anywhere(address.endpoint) if binds else address.endpoint,
                "replay_endpoint": address.replay_endpoint and _anywhere(address.replay_endpoint),
                "topic": address.topic,
            }
            for rank, address in enumerate(self._process.events)
        }
        return _json(sources)

    async def _reset(self, _: web.Request) -> web.Response:
        outcomes = [rank.scheduler.cache.reset() for rank in self._process.ranks]
        return _json({"success": all(outcomes)})

    async def _load_lora(self, request: web.Request) -> web.Response:
        wanted = await _fields(request)
        name, path, adapters = wanted.get("lora_name"), wanted.get("lora_path"), self._process.adapters
        if not (isinstance(name, str) and isinstance(path, str) and name and path):
            raise Refusal(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in adapters.by_name and not wanted.get("load_inplace"):
            message = f"The lora adapter '{name}' has already been loaded."
            raise Refusal(400, "InvalidUserInput", f"{message} If you want to load it in place, set 'load_inplace'.")
        adapters.load(name, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora(self, request: web.Request) -> web.Response:
        name = (await _fields(request)).get("lora_name")
        if not (isinstance(name, str) and name):
            raise Refusal(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
        if self._process.adapters.by_name.pop(name, None) is None:
            raise Refusal(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _faults(self, _: web.Request) -> web.Response:
        return _json(dataclasses.asdict(self._process.faults))

    async def _set_faults(self, request: web.Request) -> web.Response:
        wanted, known = await _fields(request), dataclasses.asdict(Faults())
        for name, value in wanted.items():
            if name not in known or type(value) is not int:
                raise bad_request(f"{name!r}: a whole number for one of {', '.join(known)} is wanted.", name)
        for name, value in wanted.items():
            setattr(self._process.faults, name, value)
        return _json(dataclasses.asdict(self._process.faults))


def _anywhere(address: str) -> str:
    return f"tcp://*:{address.rpartition(':')[2]}"


async def _fields(request: web.Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(await request.read(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(str(error)) from error


def _echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    if given := request.headers.get("X-Request-Id"):
        response.headers["X-Request-Id"] = given


def _cut(request: web.Request, response: web.StreamResponse | None) -> web.StreamResponse:
    if request.transport:
        request.transport.abort()
    return response or web.Response(status=500)
