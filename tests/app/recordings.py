"""Recordings made up line by line: what an engine published, what it was asked, and what it reported."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.testing.events import encode_batch, pub_frames, replay_frames

BLOCK = 4
Json = dict[str, Any]


def stored(prompt: Sequence[int], first_hash: int = 1, *, parent: int | None = None, **more: Any) -> BlockStored:
    """All whole blocks of a prompt, with hashes counting up."""
    blocks = len(prompt) // BLOCK
    return BlockStored(
        block_hashes=tuple(range(first_hash, first_hash + blocks)),
        parent=parent,
        token_ids=tuple(prompt[: blocks * BLOCK]),
        block_size=BLOCK,
        **more,
    )


def removed(*hashes: int) -> BlockRemoved:
    return BlockRemoved(block_hashes=hashes)


CLEARED = AllBlocksCleared()


def frames64(frames: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(frame).decode() for frame in frames]


def meta(**more: Any) -> Json:
    return {"k": "meta", "t": 0.0, "version": "0.32.0", "cache_config": {"block_size": str(BLOCK)}, **more}


def pub(t: float, seq: int, *events: Event, ts: float | None = None, src: str = "", rank: int = 0) -> Json:
    """A published batch, received at `t` and made by the engine at `ts`."""
    payload = encode_batch(events, ts=t if ts is None else ts, rank=rank)
    return {"k": "pub", "t": t, "src": src, "frames": frames64(pub_frames("kv", seq, payload))}


def replayed(t: float, seq: int, *events: Event) -> Json:
    """A reply of the engine's replay socket."""
    return {"k": "replay_rep", "t": t, "frames": frames64(replay_frames(seq, encode_batch(events, ts=t)))}


def request(t0: float, t1: float, number: int, prompt: Sequence[int], cached: int | None, **more: Any) -> Json:
    """A completion of token ids, of which the engine reported `cached` as cached."""
    body = {"model": "tiny", "prompt": list(prompt), **more.pop("body", {})}
    return {
        "k": "req",
        "t0": t0,
        "t1": t1,
        "id": number,
        "path": "/v1/completions",
        "body": body,
        "status": 200,
        "prompt_token_ids": list(prompt),
        "cached_tokens": cached,
        **more,
    }


def admin(t: float, path: str, text: str = "", status: int = 200) -> Json:
    return {"k": "admin", "t": t, "path": path, "status": status, "text": text}


def write(folder: Path, records: Iterable[Json], name: str = "made.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)
