"""Keys, listeners and TLS of the composed gateway: what an operator configures is what clients and engines meet."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from e2e_client import Client, exchange
from e2e_fleet import QUICK, Stack, before, config_for, engines_of, stack_of, until
from e2e_process import Command, engine, serve

from warmroute.config.tree import AdminConfig, Config, EngineConfig, GatewayConfig, TlsConfig
from warmroute.core.keys import digest_of
from warmroute.errors import ConfigError, TokenizeError
from warmroute.testing.certificates import Authority
from warmroute.testing.engine import EngineOptions, SimulatedEngine

ALICE, BOB = {"authorization": "Bearer alice-secret"}, {"x-api-key": "bob-secret"}
ALICES, BOBS = f"alice {digest_of('alice-secret')}\n", f"bob {digest_of('bob-secret')}\n"


def keyed(path: Path) -> Config:
    return replace(QUICK, gateway=replace(QUICK.gateway, keys_file=str(path)))


@asynccontextmanager
async def operators(stack: Stack) -> AsyncIterator[Client]:
    url = stack.gateway.admin_url
    assert url is not None
    async with Client(url) as client:
        yield client


def put(path: Path, text: str) -> None:
    """As tools do: written aside, then moved into place."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


async def test_keys_come_and_go_without_a_restart(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    put(keys, ALICES)
    async with stack_of(EngineOptions(), config=keyed(keys)) as stack:
        assert (await stack.client.get("/health")).status == 200
        assert (await stack.client.get("/v1/models")).status == 401
        assert (await stack.client.get("/metrics")).status == 401
        refused = await stack.client.ask(prompt=[1])
        assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
        assert (await stack.client.ask(prompt=[1], headers=ALICE)).status == 200
        assert (await stack.client.ask(prompt=[1], headers=BOB)).error["code"] == "invalid_api_key"

        put(keys, BOBS)
        watched = stack.gateway.listeners.watched["gateway_keys"]
        await until(lambda: watched.reloads == 1, "the file was read again")
        assert (await stack.client.ask(prompt=[1], headers=BOB)).status == 200
        assert (await stack.client.ask(prompt=[1], headers=ALICE)).status == 401

        put(keys, "alice alice-secret\n")
        await until(lambda: watched.failures, "the broken file was looked at")
        assert (await stack.client.ask(prompt=[1], headers=BOB)).status == 200  # what was read before stays in force
        page = (await stack.client._send("GET", "/metrics", None, BOB)).raw.decode()
        assert 'warmroute_access_refused_total{listener="gateway",reason="wrong_key"} 2.0' in page
        assert 'warmroute_file_reloads_total{files="gateway_keys",result="done"} 1.0' in page


async def test_a_file_of_keys_that_cannot_be_read_starts_no_gateway(tmp_path: Path) -> None:
    for text in (None, "alice alice-secret\n"):
        if text is not None:
            put(tmp_path / "keys", text)
        with pytest.raises(ConfigError, match=r"gateway\.keys_file") as caught:
            async with before([], keyed(tmp_path / "keys")):
                pass
        assert "alice-secret" not in str(caught.value)


async def test_operators_have_a_listener_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "keys", ALICES)
    put(tmp_path / "operators", BOBS)
    config = replace(keyed(tmp_path / "keys"), admin=AdminConfig(port=0, keys_file=str(tmp_path / "operators")))
    async with stack_of(EngineOptions(), config=config) as stack, operators(stack) as admin:
        assert (await stack.client.ask(prompt=[1], headers=ALICE)).status == 200
        for path in ("/metrics", "/workers", "/decisions/x", "/reset_prefix_cache", "/v1/load_lora_adapter"):
            assert (await stack.client._send("GET", path, None, ALICE)).status == 404
            assert (await admin._send("GET", path, None, ALICE)).status == 401
        assert (await stack.client.post("/reset_prefix_cache", b"", ALICE)).status == 404
        assert (await admin.post("/reset_prefix_cache", b"", BOB)).status == 200
        assert len((await admin._send("GET", "/workers", None, BOB)).body["workers"]) == 1
        assert b"warmroute_decisions_total" in (await admin._send("GET", "/metrics", None, BOB)).raw


async def test_tls_to_clients_with_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, renewed = authority.sign("first"), authority.sign("second")
    trusted = ssl.create_default_context(cafile=authority.file)
    tls = TlsConfig(certificate=pair.certificate, key=pair.key)
    async with engines_of(EngineOptions()) as engines:
        config = config_for(engines, replace(QUICK, tls=tls))
        async with before(engines, config) as stack:
            assert stack.gateway.url.startswith("https://127.0.0.1:")

            async def ask() -> tuple[int, str]:
                reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port, ssl=trusted)
                writer.write(b"GET /ready HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
                status = int((await reader.read()).split()[1])
                subject = writer.get_extra_info("peercert")["subject"]
                writer.close()
                return status, dict(pair[0] for pair in subject)["commonName"]

            assert await ask() == (200, "first")
            shutil.copyfile(renewed.certificate, pair.certificate)
            watched = stack.gateway.listeners.watched["certificate"]
            await until(lambda: watched.failures, "half of a pair was looked at")
            assert await ask() == (200, "first")
            shutil.copyfile(renewed.key, pair.key)
            await until(lambda: watched.reloads, "the pair was taken up")
            assert await ask() == (200, "second")


@asynccontextmanager
async def behind_tls(engine: SimulatedEngine, authority: Authority) -> AsyncIterator[str]:
    """The engine's API, encrypted by somebody in front of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("engine"))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection(engine.endpoint.host, engine.endpoint.port)
        await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer), return_exceptions=True)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_engines_behind_tls_are_asked_and_served(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with engines_of(EngineOptions()) as engines, behind_tls(engines[0], authority) as url:
        told = EngineConfig(url=url, events=False)
        config = config_for([told], replace(QUICK, tls=TlsConfig(engine_ca=authority.file)))
        async with before([], config) as stack:
            await until(lambda: stack.gateway.membership.fleet.serving("tiny"), "the engine is known")
            answer = await stack.client.ask(prompt="hello there", stream=True)
            assert answer.done
            assert stack.gateway.tokens.counts["remote"] == 1
        async with before([], config_for([told], QUICK)) as stack:  # by nobody's word that we trust
            await until(lambda: stack.gateway.membership.engines()[0][2], "the engine was asked")
            assert not stack.gateway.membership.fleet.workers


async def test_by_default_only_this_machine_is_served() -> None:
    assert (GatewayConfig().host, AdminConfig().host) == ("127.0.0.1", "127.0.0.1")
    async with stack_of(EngineOptions()) as stack:
        bound = {sock.getsockname()[0] for server in stack.gateway.server._servers for sock in server.sockets}
        assert bound == {"127.0.0.1"}


async def test_logs_hold_nothing_of_a_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    said = "prompt: my diagnosis"
    async with stack_of(EngineOptions()) as stack:

        def fail(*_: object) -> None:
            raise ValueError(said)

        def refuse(*_: object) -> None:
            raise TokenizeError("refused", said)

        await stack.client.ask(prompt="my diagnosis", headers={"authorization": "Bearer my-key"})
        for how in (fail, refuse):
            monkeypatch.setattr(stack.gateway.tokens._remote, "tokens", how)
            assert (await stack.client.ask(prompt="my diagnosis")).status == 200
        await exchange(stack.gateway.url, b"POST /my-path HTTP/1.1\r\nmy header\r\n\r\n")
        monkeypatch.setattr(stack.gateway.routing, "_decide", fail)
        answer = await stack.client.ask(prompt="my diagnosis")
        assert answer.status == 500
        assert "my" not in answer.error["message"]
    assert caplog.text.count(": ValueError in") == 2
    assert "/tokenize made no token ids: refused" in caplog.text
    assert "my" not in caplog.text


async def test_the_command_line_makes_keys_and_warns_of_open_doors(tmp_path: Path) -> None:
    async with Command("key", "alice") as made:
        assert await made.exit_code() == 0
    secret, line = (text.split(":", 1)[1].strip() for text in made.output.splitlines())
    put(tmp_path / "keys", line + "\n")
    async with (
        engine() as started,
        serve(
            await started.says(r"serving tiny at (\S+)"),
            gateway__host="127.0.0.1",
            gateway__keys_file=str(tmp_path / "keys"),
            admin__port="0",
        ) as gateway,
    ):
        url = await gateway.says(r"listening on (http://\S+),")
        admin_url = await gateway.says(r"operators are served on (http://\S+)")
        async with Client(url) as client, Client(admin_url) as admin:
            async with asyncio.timeout(20):
                while (await admin.get("/ready")).status != 200:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            assert (await client.ask(prompt=[1])).status == 401
            assert (await client.ask(prompt=[1], headers={"authorization": f"Bearer {secret}"})).status == 200
        gateway.terminate()
        assert await gateway.exit_code() == 0
    assert secret not in gateway.output
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with serve("http://127.0.0.1:9", gateway__host="0.0.0.0") as gateway:
            await gateway.says("whoever reaches gateway.host = 0.0.0.0 is served")
            await gateway.says("can also read metrics, /workers and /decisions, and administer the engines")
            gateway.terminate()
            await gateway.exit_code()
