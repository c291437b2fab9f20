"""The bare data path as a server: HttpServer on uvloop, round robin. `bare.py PORT ENGINE_PORT...`."""

import asyncio
import signal
import sys

import uvloop

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.server import HttpServer
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint


async def main() -> None:
    port, *engines = map(int, sys.argv[1:])
    service = StaticService([Endpoint("127.0.0.1", engine) for engine in engines], keep=False)
    server = HttpServer(service, GatewayConfig(port=port))
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.drain()


uvloop.run(main())
