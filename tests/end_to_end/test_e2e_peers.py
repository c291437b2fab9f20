"""What other gateways were seen to do to requests and answers, each as a test that this one does not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import h11
import pytest
from e2e_client import CHAT, COMPLETIONS, exchange
from e2e_fleet import QUICK, Stack, before, config_for, until
from e2e_recording_engine import ANSWER, RecordingEngine

from warmroute.config.tree import Config, EngineConfig, TokenizerConfig
from warmroute.testing.streams import StreamConnection, StreamEngine

OFF = replace(QUICK, tokenizer=TokenizerConfig(mode="off"))
JSON = (
    b'{ "model":"tiny","messages":[{"role":"user","content":"\\u00e9\xc3\xa9"}],"prompt":[1,2,\n3],"input":"x",'
    b'"seed":123456789012345678901234567890,"temperature":0.7000000000000001,"top_p":1.0,"x":1E400,"cache_salt":"s",'
    b'"logit_bias":{"9007199254740993":-1.0},"unknown":{"b":1,"a":[null,true,{}],"b":2},"stream":false, "user":null}\t'
)
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--b--\r\n'
REQUESTS = [
    *((b"POST", path, JSON) for path in (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings")),
    *((b"POST", path, JSON) for path in (b"/v1/responses", b"/v1/messages", b"/v1/messages/count_tokens")),
    *((b"POST", path, JSON) for path in (b"/v1/moderations", b"/v1/images/generations", b"/v1/audio/speech")),
    *((b"POST", path, JSON) for path in (b"/v1/rerank", b"/v1/score", b"/pooling", b"/classify", b"/detokenize")),
    *((b"POST", path, MULTIPART) for path in (b"/v1/audio/transcriptions", b"/v1/audio/translations", b"/v1/files")),
    (b"GET", b"/v1/responses/resp_1?include[]=a%20b&stream=", b""),
    (b"DELETE", b"/v1/responses/resp_1", b""),
    (b"POST", b"/v1/responses/resp_1/cancel", b""),
]
SENT = (
    b"Authorization: Bearer sk-of-the-client\r\nX-Odd: kept\tas it is\r\nx-odd: twice\r\nOpenAI-Organization: o\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nAccept-Encoding: gzip\r\nX-Empty: \r\n"
    b"Cookie: a=b\r\nX-Latin: \xe9\r\n"
)
ANSWERED = (
    b"Server: engine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-RateLimit-Remaining: 7\r\n"
    b"content-TYPE: application/json\r\nopenai-processing-ms: 12\r\nX-Latin: \xe9\r\n"
)


@asynccontextmanager
async def gateway(url: str, config: Config = OFF) -> AsyncIterator[Stack]:
    async with before([], config_for([EngineConfig(url=url, events=False)], config)) as stack:
        await until(lambda: stack.gateway.membership.fleet.serving("tiny"), "the engine is known")
        yield stack


@pytest.mark.parametrize(
    ("method", "target", "body"), REQUESTS, ids=[f"{m.decode()} {t.decode()}" for m, t, _ in REQUESTS]
)
async def test_bytes_and_headers_are_exact_on_every_path(method: bytes, target: bytes, body: bytes) -> None:
    async with RecordingEngine() as engine, gateway(engine.url) as stack:
        engine.headers = ANSWERED
        hop_by_hop = b"Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        head = b"%b %b HTTP/1.1\r\nHost: here\r\n" % (method, target)
        answer = await exchange(stack.gateway.url, head + SENT + hop_by_hop + length + b"\r\n" + body)
        ((got, received),) = engine.requests
        assert received == body
        start = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, engine.url[7:].encode())
        before_ours, _, own = got.partition(b"x-request-id: ")
        assert before_ours == start + SENT + length
        assert own.count(b"\r\n") == 2, "only the request's id is added"
        told, _, content = answer.partition(b"\r\n\r\n")
        assert content == ANSWER
        ours = told.removeprefix(b"HTTP/1.1 200 OK\r\n" + ANSWERED + b"Content-Length: %d\r\n" % len(ANSWER))
        assert len(ours) < len(told)
        names = [line.split(b":")[0] for line in ours.split(b"\r\n")]
        assert names == [b"x-request-id", b"x-warmroute-worker", b"x-warmroute-overlap-tokens", b"Connection"]


ERRORS = [
    b"400 Bad Request",
    b"401 Unauthorized",
    b"404 Not Found",
    b"413 Content Too Large",
    b"422 Unprocessable Entity",
]


@pytest.mark.parametrize("status", [*ERRORS, b"429 Too Many Requests", b"500 Internal Server Error"])
async def test_an_engines_error_is_its_own_word_and_the_clients_fault_is_not_the_engines(status: bytes) -> None:
    async with RecordingEngine() as engine, gateway(engine.url) as stack:
        engine.headers, engine.status = b"Retry-After: 7\r\n", status
        for _ in range(30):
            answer = await stack.client.post(CHAT, JSON)
            if answer.status == 503 and status.startswith(b"5"):
                break  # failures of the engine's own shut it out
            assert (answer.status, answer.raw, answer.headers["retry-after"]) == (int(status[:3]), ANSWER, "7")
        engine.status = b"200 OK"
        if not status.startswith(b"5"):
            assert (await stack.client.post(CHAT, JSON)).status == 200


def silent_request(kind: str, path: str = COMPLETIONS) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": [1, 2], "stream": kind == "idle", "user": kind}).encode()
    return b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


async def opened(stack: Stack, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
    writer.write(sent)
    return reader, writer


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/embeddings"])
@pytest.mark.parametrize("kind", ["silent", "idle"], ids=["JSON", "stream"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_is_told_to_the_engine_and_its_load_is_gone(kind: str, path: str, how: str) -> None:
    async with StreamEngine() as engine, gateway(engine.url) as stack:
        _, writer = await opened(stack, silent_request(kind, path))
        waiting: set[StreamConnection] = engine.silent if kind == "silent" else engine.idle
        await until(lambda: waiting, "the engine has the request")
        (worker,) = stack.gateway.membership.fleet.workers
        load = stack.gateway.router.load
        assert load.of(worker.id, time.monotonic()).requests == 1
        if how == "reset":
            writer.transport.abort()
        else:
            writer.close()
        await until(lambda: not waiting, "the engine sees it leave")
        await until(lambda: load.of(worker.id, time.monotonic()).requests == 0, "its load is released")
        assert stack.gateway.server.counts.clients_gone == 1
        assert (await stack.client.ask(prompt=[1])).status == 200


def read_on(client: h11.Connection) -> None:
    while client.next_event() is not h11.NEED_DATA:
        pass


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
async def test_an_engine_that_dies_in_a_stream_is_seen_by_the_client(how: str) -> None:
    async with StreamEngine() as engine, gateway(engine.url) as stack:
        reader, writer = await opened(stack, silent_request("idle"))
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="POST", target="/", headers=[("host", "g"), ("content-length", "0")]))
        client.send(h11.EndOfMessage())
        client.receive_data(await reader.readuntil(b"\n\n\r\n"))
        assert isinstance(client.next_event(), h11.Response)
        assert isinstance(client.next_event(), h11.Data)
        (dying,) = engine.idle
        if how == "garbage":
            dying.transport.write(b"not a chunk\r\n")
        else:
            (dying.transport.close if how == "close" else dying.transport.abort)()
        rest = await reader.read()
        assert b"[DONE]" not in rest
        client.receive_data(rest)
        client.receive_data(b"")
        with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked"):
            read_on(client)
        writer.close()
        (trail,) = stack.gateway.routing.tracking.last(1)
        assert trail.outcome is not None
        assert trail.outcome.value == "engine_lost"


async def test_a_tokenizer_that_fails_costs_no_request() -> None:
    config = replace(QUICK, tokenizer=TokenizerConfig(mode="remote", timeout_s=10.0))
    async with StreamEngine() as engine, gateway(engine.url, config) as stack:  # its /tokenize answers, without tokens
        for _ in range(3):
            answer = await stack.client.ask(CHAT, messages=[{"role": "user", "content": "hello"}])
            assert (answer.status, answer.predicted) == (200, 0)
        assert sum(stack.gateway.routing.tracking.no_tokens.values()) == 3
