"""Record a real vLLM engine: what it publishes, byte for byte, and the requests that made it do so.

A recording is one JSON object per line; `k` says of what kind:

    meta        t, version, base, topic, cache_config, note            first line
    pub         t, frames                                              one published message, frames in base64
    req         t0, t1, id, path, body, status, headers, tag, ...      one request: prompt_token_ids,
                                                                       completion_token_ids, prompt_tokens,
                                                                       cached_tokens as the engine reported them;
                                                                       hits_delta, queries_delta of its counters
                                                                       where it ran alone; aborted if it was left
    admin       t, method, path, body, status, text                    a request that generates nothing
    replay_req, replay_rep   t, sock, frames                           one exchange with the replay socket
    restart     t, text                                                the engine's process was ended here
    note        t, text

Times are seconds of the wall clock. Lines are in order of writing: a request is written when it ended.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import zmq
import zmq.asyncio
from vllm_engine import VllmEngine

Json = dict[str, Any]

CACHE_CONFIG = ("block_size", "num_gpu_blocks", "prefix_caching_hash_algo", "hash_block_size", "enable_prefix_caching")
END_OF_REPLAY = b"\xff" * 8


class Recorder:
    """Sends requests to one engine and writes down everything seen; use as `async with`."""

    def __init__(self, path: Path, engine: VllmEngine, note: str, model: str = "tiny") -> None:
        self.engine = engine
        self.model = model
        self._path = path
        self._note = note
        self._requests = 0
        self._running = 0
        self._last_published = 0.0
        self.last_seq = 0

    async def __aenter__(self) -> Self:
        self._file = self._path.open("w")
        self._http = aiohttp.ClientSession(self.engine.url, timeout=aiohttp.ClientTimeout(120))
        self._context = zmq.asyncio.Context()
        self._subscription = self._context.socket(zmq.SUB)
        self._subscription.set_hwm(0)
        self._subscription.setsockopt(zmq.SUBSCRIBE, self.engine.options.topic.encode())
        self._subscription.connect(self.engine.events_endpoint)
        self._listening = asyncio.create_task(self._listen())
        await asyncio.sleep(0.4)  # a publisher says nothing when it has taken a subscription in
        async with self._http.get("/version") as answer:
            version = (await answer.json())["version"]
        cache_config = (await self._metrics())[2]
        self.write(
            "meta",
            base=self.engine.url,
            topic=self.engine.options.topic,
            cache_config=cache_config,
            version=version,
            note=self._note,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.settle(0.5)  # on a busy machine the publisher's thread is late by so much
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._subscription.close(0)
        self._context.term()
        await self._http.close()
        self._file.close()

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line; `t` is now unless the line has its own times."""
        stamp = {} if "t0" in fields else {"t": time.time()}
        self._file.write(json.dumps({"k": kind, **stamp, **fields}, separators=(",", ":")) + "\n")
        self._file.flush()

    def note(self, text: str) -> None:
        """Append a remark."""
        self.write("note", text=text)

    async def settle(self, quiet_s: float = 0.05, most_s: float = 2.0) -> None:
        """Wait until nothing was published for a while."""
        begin = time.time()
        while time.time() - begin < most_s and time.time() - max(self._last_published, begin) < quiet_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def send(self, path: str, body: Json, *, tag: str | None = None, headers: Json | None = None) -> Json:
        """One request, and its answer; an answer that is no 200 is recorded like any other."""
        body = self._complete(body)
        line, alone = self._begin(path, body, tag, headers), self._running == 1
        before = await self._metrics() if alone else None
        line["t0"] = time.time()
        try:
            async with self._http.post(path, json=body, headers=headers) as answer:
                line["status"] = answer.status
                result: Json = await answer.json()
        finally:
            self._running -= 1
        line["t1"] = time.time()
        if line["status"] != 200:
            line["error"] = result
        await self.settle(0.02 if alone else 0.0)
        if before and self._running == 0:
            after = await self._metrics()
            line |= {"queries_delta": after[0] - before[0], "hits_delta": after[1] - before[1]}
        self.write("req", **line, **_reported(result))
        return result

    async def stream(self, path: str, body: Json, *, leave_after: int | None = None, tag: str | None = None) -> Json:
        """One streaming request; with `leave_after`, the client goes away after so many events."""
        body = self._complete({**body, "stream": True, "stream_options": {"include_usage": True}})
        line = self._begin(path, body, tag, None)
        merged: Json = {"choices": [{}]}
        events = 0
        line["t0"] = time.time()
        try:
            async with self._http.post(path, json=body) as answer:
                line["status"] = answer.status
                async for raw in answer.content:
                    if not raw.startswith(b"data: {"):
                        continue
                    _merge(merged, json.loads(raw[6:]))
                    events += 1
                    if events == leave_after:
                        line["aborted"] = True
                        answer.close()  # the connection with it: the engine sees its client gone
                        break
        finally:
            self._running -= 1
        line["t1"] = time.time()
        await self.settle(0.02 if self._running == 0 else 0.0)
        self.write("req", **line, **_reported(merged))
        return merged

    async def admin(self, path: str, body: Json | None = None, method: str = "POST") -> str:
        """A request that generates nothing; the text of its answer."""
        async with self._http.request(method, path, json=body) as answer:
            text = await answer.text()
            status = answer.status
        await self.settle()
        self.write("admin", method=method, path=path, body=body, status=status, text=text[:300])
        return text

    async def replay(self, start: int) -> list[list[bytes]]:
        """One exchange with the replay socket, to its end."""
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.connect(self.engine.replay_endpoint)
        question = [b"", start.to_bytes(8, "big")]
        self.write("replay_req", sock="DEALER", frames=_encoded(question))
        await socket.send_multipart(question)
        replies: list[list[bytes]] = []
        while not replies or replies[-1][-2] != END_OF_REPLAY:
            replies.append(await asyncio.wait_for(socket.recv_multipart(), 5))
            self.write("replay_rep", sock="DEALER", frames=_encoded(replies[-1]))
        socket.close(0)
        return replies

    async def running(self) -> float:
        """How many requests the engine says it is running."""
        return _metric(await self._metrics_text(), "vllm:num_requests_running")

    async def _listen(self) -> None:
        while True:
            frames = await self._subscription.recv_multipart()
            self._last_published = time.time()
            self.last_seq = int.from_bytes(frames[1], "big")
            self.write("pub", frames=_encoded(frames))

    def _complete(self, body: Json) -> Json:
        return {"model": self.model, "temperature": 0, "return_token_ids": True, **body}

    def _begin(self, path: str, body: Json, tag: str | None, headers: Json | None) -> Json:
        self._requests += 1
        self._running += 1
        line: Json = {"id": self._requests, "path": path, "body": body, "t0": 0.0}
        return line | ({"tag": tag} if tag else {}) | ({"headers": headers} if headers else {})

    async def _metrics_text(self) -> str:
        async with self._http.get("/metrics") as answer:
            return await answer.text()

    async def _metrics(self) -> tuple[float, float, Json]:
        text = await self._metrics_text()
        found = re.search(r"^vllm:cache_config_info\{([^}]*)\}", text, re.MULTILINE)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1])) if found else {}
        return (
            _metric(text, "vllm:prefix_cache_queries_total"),
            _metric(text, "vllm:prefix_cache_hits_total"),
            {name: labels.get(name) for name in CACHE_CONFIG},
        )


def answer_text(answer: Json) -> str:
    """What the engine generated, of the first choice."""
    choice = answer["choices"][0]
    return str((choice.get("message") or {}).get("content") or choice.get("text") or "")


def _encoded(frames: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(frame).decode() for frame in frames]


def _metric(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def _reported(answer: Json) -> Json:
    """What an answer says of its tokens, as the fields of a `req` line."""
    choice = (answer.get("choices") or [{}])[0]
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt_token_ids": answer.get("prompt_token_ids") or choice.get("prompt_token_ids"),
        "completion_token_ids": choice.get("token_ids"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "cached_tokens": details.get("cached_tokens"),
        "created_cache_tokens": details.get("created_cache_tokens"),
    }


def _merge(merged: Json, event: Json) -> None:
    """Add one event of a stream to what it amounts to, in the shape of a whole answer."""
    choice = merged["choices"][0]
    if event.get("prompt_token_ids"):
        merged["prompt_token_ids"] = event["prompt_token_ids"]
    if event.get("usage"):
        merged["usage"] = event["usage"]
    for part in event.get("choices") or []:
        if part.get("index", 0) != 0:
            continue
        if part.get("prompt_token_ids"):
            choice["prompt_token_ids"] = part["prompt_token_ids"]
        choice["token_ids"] = (choice.get("token_ids") or []) + (part.get("token_ids") or [])
        piece = (part.get("delta") or {}).get("content") or part.get("text") or ""
        choice["text"] = choice.get("text", "") + piece
