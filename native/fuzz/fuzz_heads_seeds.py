"""Write heads to begin fuzzing with: such as clients and engines send.

python native/fuzz/fuzz_heads_seeds.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

HEADS = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: g:8000\r\nAccept: */*\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/x?a=%20 HTTP/1.1\r\nhost: g\r\nconnection: keep-alive\r\nX-Request-ID: 1\r\ncontent-length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 503\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
)


def main(directory: Path) -> None:
    """Write every seed as a file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, head in enumerate(HEADS):
        (directory / f"head-{number}").write_bytes(head)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
