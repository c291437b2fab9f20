"""The harness itself, and what the rest takes for granted of a real engine."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

from openai_client import COMPLETIONS, Client
from prompts import Prompts
from recorder import Recorder
from vllm_engine import VllmEngine

from warmroute.core.wire import ReplayBatch, decode_batch, decode_pub, decode_replay
from warmroute.core.wire.events import BlockStored

Engines = Sequence[VllmEngine]


async def test_an_engine_says_where_it_publishes(engines: Engines) -> None:
    for engine in engines:
        async with Client(engine.url) as client:
            source = (await client.get("/kv_event_sources")).body["0"]
        assert source["endpoint"] == f"tcp://*:{engine.events_port}"
        assert source["replay_endpoint"] == engine.replay_endpoint


async def test_what_an_engine_publishes_is_understood(cold: Engines, tmp_path: Path) -> None:
    ids = Prompts(11).token_ids(100)
    async with Recorder(tmp_path / "recording.jsonl", cold[0], "the same prompt twice") as recorder:
        for _ in range(2):
            await recorder.send(COMPLETIONS, {"prompt": ids, "max_tokens": 1})
        replayed = [decode_replay(frames) for frames in await recorder.replay(recorder.last_seq)]
    lines = [json.loads(line) for line in (tmp_path / "recording.jsonl").read_text().splitlines()]
    assert [line["cached_tokens"] for line in lines if line["k"] == "req"] == [0, 96]

    (frames,) = [tuple(map(b64decode, line["frames"])) for line in lines if line["k"] == "pub"]
    topic, seq, payload = decode_pub(frames)
    assert topic == b"kv-events"
    assert ReplayBatch(seq, payload) in replayed
    batch = decode_batch(payload)
    assert batch.rejected == ()
    (event,) = batch.events
    assert isinstance(event, BlockStored)
    assert (list(event.token_ids), event.block_size, event.parent) == (ids[:96], 32, None)
