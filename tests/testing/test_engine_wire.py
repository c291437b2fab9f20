"""The simulation publishes what `warmroute.testing.events` says, and that is held to the releases' own bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute.errors import ConfigError
from warmroute.testing.engine.cache import CacheEvent, Cleared, Content, Removed, Stored
from warmroute.testing.engine.options import EngineOptions
from warmroute.testing.engine.release import Release
from warmroute.testing.engine.wire import EventEncoder
from warmroute.testing.events import RELEASES, encode_batch

GOLDEN = Path(__file__).parent.parent / "golden" / "wire_by_version.jsonl"
PUBLISHED = {
    golden["version"].rpartition("-")[2]: golden
    for golden in map(json.loads, GOLDEN.read_text().splitlines())
    if golden["version"].startswith("vllm")
}
FIRST, SECOND = (hashlib.sha256(bytes((number,))).digest() for number in range(2))
SALTED = Content(salt="s")
EVENTS: list[CacheEvent] = [
    Cleared(),
    Removed(SECOND),
    Stored((FIRST,), None, (1, 2), 2, 0, SALTED),
    Stored((SECOND,), FIRST, (3, 4), 2, 1, SALTED),
]


def number(digest: bytes, *, signed: bool = False) -> int:
    return int.from_bytes(digest[-8:], "big", signed=signed)


def encoder(release: str, **given: Any) -> EventEncoder:
    known = Release.of(release)
    return EventEncoder(known.layout, given.pop("form", known.layout.form), known.hash_form, **given)


@pytest.mark.parametrize("form", ["map", "array"])
@pytest.mark.parametrize("name", [name.removeprefix("vllm-") for name in RELEASES if name.startswith("vllm-")])
def test_batches_are_those_of_the_release(name: str, form: Any) -> None:
    signed = Release.of(name).hash_form == "signed"
    first, second = number(FIRST, signed=signed), number(SECOND, signed=signed)
    same = [
        AllBlocksCleared(),
        BlockRemoved(block_hashes=(second,)),
        BlockStored(block_hashes=(first,), parent=None, token_ids=(1, 2), block_size=2, extra_keys=(("s",),)),
        BlockStored(block_hashes=(second,), parent=first, token_ids=(3, 4), block_size=2),
    ]
    expected = encode_batch(same, form, release=f"vllm-{name}", ts=7.5, rank=1)
    assert encoder(name, form=form, rank=1).batch(7.5, EVENTS) == expected


@pytest.mark.parametrize("version", sorted(PUBLISHED))
def test_every_released_version_has_the_fields_it_published(version: str) -> None:
    golden = PUBLISHED[version]
    release = Release.of(version)
    assert list(release.layout.stored) == golden["stored_fields"]
    assert list(release.layout.removed) == golden["removed_fields"]
    assert release.layout.replay_topic == (len(golden["replay_from_2"][0]) == 4)


def test_lora_and_session_of_a_recorded_request() -> None:
    content = Content("sql", 1, "sql\0/a", "s", "sess-42")
    stored = Stored((FIRST, SECOND), None, (1, 2, 3, 4), 2, 0, content)
    (event,) = msgspec.msgpack.decode(encoder("0.32").batch(0.0, [stored]))[1]
    assert event["extra_keys"] == [["sql", "s"], ["sql"]]
    assert (event["lora_id"], event["lora_name"], event["session_id"]) == (1, "sql", "sess-42")


def test_hash_forms() -> None:
    layout = Release.of("0.32").layout
    stored = [Stored((FIRST,), None, (1, 2), 2, 0, Content())]
    published = {
        form: msgspec.msgpack.decode(EventEncoder(layout, "map", form).batch(0.0, stored))[1][0]["block_hashes"][0]
        for form in ("int", "signed", "bytes")
    }
    assert published["bytes"] == FIRST
    assert published["int"] == number(FIRST)
    assert published["signed"] == number(FIRST, signed=True)


def test_releases_by_number() -> None:
    assert Release.of("0.10.1").hash_form == "signed"
    assert Release.of("0.13").layout == RELEASES["vllm-0.10.2"]
    assert Release.of("0.32.0").name == Release.of("0.32").name == "0.32.0"
    for wrong in ("0.8", "0.34", "1.0", "new", ""):
        with pytest.raises(ConfigError, match=r"0\.9 to 0\.33"):
            Release.of(wrong)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"block_size": 0}, "block_size"),
        ({"num_blocks": 100, "block_size": 16}, "max_model_len"),
        ({"jitter": 2.0}, "jitter"),
        ({"decode_per_token_s": -1.0}, "decode_per_token_s"),
        ({"release": "x"}, "release"),
    ],
)
def test_options_that_an_engine_would_refuse(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineOptions(**wrong)
    assert caught.value.key == key
