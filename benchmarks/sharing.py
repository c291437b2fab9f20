"""What one view of load costs per request: a page of shared memory beside a local socket.

    python benchmarks/sharing.py [--requests 20000]

Per request a process opens, moves on and closes a lease, and reads everybody's load once. `page`: as the gateway does
it. `socket`: each of the three changes is packed and sent to every other process over a Unix datagram socket, and each
other process reads and adds what it was sent; the CPU of both ends is one request's cost, so both are counted.
Microseconds of CPU per request, beyond a process that is alone.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time

from warmroute.core.load import LoadTable
from warmroute.core.sharing import Sharing, page_bytes
from warmroute.types import Endpoint, Worker, WorkerId

MESSAGE = struct.Struct("<Qqqqqd")


def fleet(size: int) -> list[Worker]:
    return [Worker(WorkerId(n), Endpoint("10.0.0.1", n)) for n in range(size)]


def serve(tables: list[LoadTable], workers: list[Worker], requests: int) -> float:
    """CPU microseconds per request of `requests` by turns of the tables."""
    for table in tables:
        table.introduce(workers)
        for worker in workers:
            table.slot(worker.id)
    begun = time.process_time()
    for n in range(requests):
        table, worker = tables[n % len(tables)], workers[n % len(workers)]
        now = n * 1e-3
        table.rows(now)
        lease = table.book(worker.id, 1000, 500, now, prefill_observable=True)
        table.prefilled(lease, now + 0.05)
        table.release(lease, now + 0.05)
    return (time.process_time() - begun) / requests * 1e6


def page_us(processes: int, size: int, requests: int) -> float:
    page = memoryview(bytearray(page_bytes(processes))).cast("d")
    tables = [LoadTable(sharing=Sharing(page, process, processes)) for process in range(processes)]
    return serve(tables, fleet(size), requests)


def socket_us(processes: int, size: int, requests: int) -> float:
    """Three messages to each other process, and what receiving them costs there."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(processes - 1)]
    columns = [[0.0] * size for _ in range(5)]
    begun = time.process_time()
    for n in range(requests):
        for _ in range(3):
            message = MESSAGE.pack(n % size, 1, 1, 500, 1000, 0.1)
            for ours, theirs in pairs:
                ours.send(message)
                slot, *changes = MESSAGE.unpack(theirs.recv(64))
                for column, change in zip(columns, changes, strict=True):
                    column[slot] += change
    used = (time.process_time() - begun) / requests * 1e6
    for pair in pairs:
        for end in pair:
            end.close()
    return used


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--requests", type=int, default=20_000)
    requests = options.parse_args().requests
    print(f"{'processes':>9} {'workers':>7} {'page us':>9} {'socket us':>9}")
    for processes in (2, 4, 8):
        for size in (4, 16, 128, 1000):
            alone = min(serve([LoadTable()], fleet(size), requests) for _ in range(3))
            page = min(page_us(processes, size, requests) for _ in range(3)) - alone
            sent = min(socket_us(processes, size, requests // 4) for _ in range(3))
            print(f"{processes:9} {size:7} {page:9.1f} {sent:9.1f}")


main()
