"""Guards and TLS over real sockets: who is let in is decided on the head; certificates come and go."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from test_http_relay import post
from wires import JSON, Engine, Wire, World, until

from warmroute.config.tree import GatewayConfig, TlsConfig
from warmroute.core.keys import digest_of, parse_keys
from warmroute.edge.http.server import HttpServer
from warmroute.edge.tls import ServerTls, engine_context
from warmroute.errors import ConfigError
from warmroute.service.access import Access
from warmroute.service.ports import Outcome
from warmroute.testing.certificates import Authority
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: g\r\n"
KEYS = parse_keys(f"alice {digest_of('s3cret')}", "k")


async def listening(world: World, server: HttpServer) -> int:
    port = await server.start()
    world.cleanups.append(server.close)
    return port


async def guarded(world: World) -> tuple[Engine, HttpServer, int]:
    engine = await world.engine()
    server = HttpServer(StaticService([engine.endpoint]), GatewayConfig(port=0), guard=Access(KEYS))
    return engine, server, await listening(world, server)


# Keys


@pytest.mark.parametrize("body", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
async def test_a_stranger_is_refused_before_the_body_is_read(world: World, body: bytes, expects: bytes) -> None:
    engine, server, port = await guarded(world)
    client = await world.client(port)
    await client.send(HEAD + b"Authorization: Bearer guess\r\n" + expects + body)
    head, answer = await client.message()
    assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")  # and no 100 before it
    assert b"WWW-Authenticate: Bearer\r\n" in head
    error = json.loads(answer)["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert await client.rest() == b""
    assert (engine.connections, server.counts.refused) == (0, {401: 1})


async def test_the_engine_sees_the_keys_name_and_no_credentials(world: World) -> None:
    engine, _, port = await guarded(world)
    client = await world.client(port)
    for number in range(2):
        await client.send(post(b"x").replace(b"\r\n", b"\r\nAuthorization: Bearer s3cret\r\nX-Api-Key: s3cret\r\n", 1))
        if not number:
            wire = await engine.accept()
        head, _ = await wire.message()
        assert b"s3cret" not in head
        assert head.count(b"x-warmroute-key: alice\r\n") == 1
        await wire.send(JSON)
        await client.message()


async def test_a_pipelined_request_needs_a_key_of_its_own(world: World) -> None:
    engine, _, port = await guarded(world)
    client = await world.client(port)
    let_in = post(b"x").replace(b"\r\n", b"\r\nAuthorization: Bearer s3cret\r\n", 1)
    await client.send(let_in + post(b"y"))
    wire = await engine.accept()
    await wire.message()
    await wire.send(JSON)
    await client.message()
    head, _ = await client.message()
    assert head.startswith(b"HTTP/1.1 401 ")


# TLS to clients


async def secure(port: int, authority: Authority) -> Wire:
    context = ssl.create_default_context(cafile=authority.file)
    return Wire(*await asyncio.open_connection("127.0.0.1", port, ssl=context))


def shown(wire: Wire) -> str:
    """The subject of the certificate that the gateway showed."""
    certificate = wire.writer.get_extra_info("peercert")
    return str(dict(pair[0] for pair in certificate["subject"])["commonName"])


async def test_requests_and_streams_over_tls(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    engine = await world.engine()
    service = StaticService([engine.endpoint])
    server = HttpServer(service, GatewayConfig(port=0), tls=ServerTls(*authority.sign("one")).context)
    client = await secure(await listening(world, server), authority)
    world.wires.append(client)
    for number in range(2):
        await client.send(post(b"x" * 300_000))
        if not number:
            wire = await engine.accept()
        assert (await wire.message())[1] == b"x" * 300_000
        await wire.send(JSON)
        assert (await client.message())[1] == b'{"ok":true}'
    await client.send(post(b"x"))
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert (await client.until(b"abc\r\n")).endswith(b"3\r\nabc\r\n")
    client.close()  # in the middle of a stream
    assert await wire.rest() == b""
    await until(lambda: service.dispatches[-1].outcome is Outcome.CLIENT_GONE)
    await until(lambda: not server.clients)


async def test_plain_text_on_a_tls_port_is_nobodys_request(world: World, tmp_path: Path) -> None:
    engine = await world.engine()
    pair = Authority(tmp_path).sign("one")
    server = HttpServer(StaticService([engine.endpoint]), GatewayConfig(port=0), tls=ServerTls(*pair).context)
    client = await world.client(await listening(world, server))
    await client.send(post(b"x"))
    assert b"HTTP/1.1" not in await client.rest()
    assert (engine.connections, server.counts.requests) == (0, 0)


async def test_a_handshake_that_does_not_come_has_an_end(world: World, tmp_path: Path) -> None:
    pair = Authority(tmp_path).sign("one")
    config = GatewayConfig(port=0, head_timeout_s=0.05)
    server = HttpServer(StaticService([Endpoint("127.0.0.1", 9)]), config, tls=ServerTls(*pair).context)
    client = await world.client(await listening(world, server))
    assert await client.rest() == b""
    assert server.counts.clients == 0


async def test_a_new_certificate_is_for_new_connections(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.sign("one"), authority.sign("two")
    engine = await world.engine()
    tls = ServerTls(*pair)
    server = HttpServer(StaticService([engine.endpoint]), GatewayConfig(port=0), tls=tls.context)
    port = await listening(world, server)
    old = await secure(port, authority)
    world.wires.append(old)
    assert shown(old) == "one"

    shutil.copyfile(other.certificate, pair.certificate)  # its key has not come yet
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        tls.reload()
    still = await secure(port, authority)
    assert shown(still) == "one"
    shutil.copyfile(other.key, pair.key)
    tls.reload()
    new = await secure(port, authority)
    assert shown(new) == "two"
    for client in (old, still, new):
        world.wires.append(client)
        await client.send(post(b"x"))
        if client is old:
            wire = await engine.accept()  # later ones reuse the connection
        await wire.message()
        await wire.send(JSON)
        assert (await client.message())[1] == b'{"ok":true}'


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    pair = Authority(tmp_path).sign("one")
    encrypted = pair._replace(key=str(tmp_path / "encrypted.key"))
    command = ("openssl", "pkcs8", "-topk8", "-passout", "pass:word", "-in", pair.key, "-out", encrypted.key)
    subprocess.run(command, check=True)
    with pytest.raises(ConfigError, match="cannot be used"):
        ServerTls(*encrypted)


# TLS to engines


async def encrypted_engine(world: World, authority: Authority, address: str = "127.0.0.1") -> Engine:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("engine", address))
    engine = Engine(Endpoint("127.0.0.1", 0, tls=True))

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine.connections += 1
        world.wires.append(Wire(reader, writer))
        engine.accepted.put_nowait(world.wires[-1])

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    engine.endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)

    async def stop() -> None:
        server.close()

    world.cleanups.append(stop)
    return engine


async def before(world: World, engine: Engine, config: TlsConfig) -> tuple[HttpServer, Wire]:
    server = HttpServer(StaticService([engine.endpoint]), GatewayConfig(port=0), engine_tls=engine_context(config))
    return server, await world.client(await listening(world, server))


async def test_an_engine_that_the_authority_vouches_for(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    engine = await encrypted_engine(world, authority)
    _, client = await before(world, engine, TlsConfig(engine_ca=authority.file))
    for number in range(2):
        await client.send(post(b"x" * 100_000))
        if not number:
            wire = await engine.accept()
        assert (await wire.message())[1] == b"x" * 100_000
        await wire.send(JSON)
        assert (await client.message())[1] == b'{"ok":true}'
    assert engine.connections == 1


@pytest.mark.parametrize("fault", ["unknown authority", "another address"])
async def test_an_engine_that_nobody_vouches_for_gets_no_request(world: World, tmp_path: Path, fault: str) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    other = fault == "another address"
    engine = await encrypted_engine(world, authority if other else stranger, "127.0.0.9" if other else "127.0.0.1")
    server, client = await before(world, engine, TlsConfig(engine_ca=authority.file))
    await client.send(post(b"x"))
    head, body = await client.message()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert json.loads(body)["error"]["code"] == "engine_unreachable"
    assert server.counts.connect_failures == 1

    server, client = await before(world, engine, TlsConfig(engine_ca=authority.file, engine_verify=False))
    await client.send(post(b"x"))
    async with asyncio.timeout(60):
        while True:  # the connection that failed to be trusted may have been accepted too
            wire = await engine.accept()
            if await wire.reader.read(1):
                break


def test_authorities_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("nothing")
    for path in ("ca", "missing"):
        with pytest.raises(ConfigError, match=r"tls\.engine_ca"):
            engine_context(TlsConfig(engine_ca=str(tmp_path / path)))
