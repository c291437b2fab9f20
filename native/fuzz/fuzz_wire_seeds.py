"""Write payloads to begin fuzzing with: what each release's own code published, and what our encoders make.

python native/fuzz/fuzz_wire_seeds.py DIRECTORY
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute.testing.events import RELEASES, encode_batch

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "wire_by_version.jsonl"
EVENTS = (
    BlockStored(
        block_hashes=(-5, 2**64 - 1),
        parent=b"digest",
        token_ids=tuple(1 << (i % 32) for i in range(64)),
        block_size=32,
        lora="sql",
        extra_keys=(("salt", b"embeds"), ("img",)),
    ),
    BlockStored(  # long enough to be read from several places at once
        block_hashes=tuple(range(40)),
        parent=None,
        token_ids=tuple(i * i * 977 % 151_936 for i in range(640)),
        block_size=16,
    ),
    BlockRemoved(block_hashes=tuple(range(-200, 200, 7))),
    AllBlocksCleared(),
)


def main(directory: Path) -> None:
    """Write every seed as a file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for record in map(json.loads, GOLDEN.read_text().splitlines()):
        for number, message in enumerate(record["pub"]):
            (directory / f"{record['version']}-{number}").write_bytes(base64.b64decode(message[-1]))
    for release in RELEASES:
        (directory / f"encoded-{release}").write_bytes(encode_batch(EVENTS, release=release))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
