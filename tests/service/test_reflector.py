"""A copy of a collection: what is said while it cannot be kept, and how often the server is asked meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from warmroute.core.pods import PodState, Sighting
from warmroute.service.reflector import ClusterError, Collection, ExpiredError, Listing, Reflector, WatchEvent

EVENT = WatchEvent("ADDED", b"a", "2")


class Script:
    """A server that does what it is told, call by call, and then nothing any more: `Done` ends the test."""

    def __init__(self, *calls: Exception | Listing | Sequence[Sequence[WatchEvent] | Exception]) -> None:
        self.calls = list(calls)

    async def list(self, collection: Collection) -> Listing:
        call = self._next()
        assert isinstance(call, Listing)
        return call

    async def watch(
        self, collection: Collection, version: str, timeout_s: float
    ) -> AsyncIterator[Sequence[WatchEvent]]:
        call = self._next()
        assert not isinstance(call, Listing)
        for events in call:
            if isinstance(events, Exception):
                raise events
            yield events

    def _next(self) -> Listing | Sequence[Sequence[WatchEvent] | Exception]:
        if not self.calls:
            raise asyncio.CancelledError
        call = self.calls.pop(0)
        if isinstance(call, Exception):
            raise call
        return call


async def followed(api: Script, clock: Callable[[], float] = lambda: 0.0) -> tuple[Reflector, list[float]]:
    """The reflector when the script is over, and how long it paused each time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def read(raw: bytes) -> Sighting:
        return Sighting(raw.decode(), "1", raw.decode(), PodState.ROUTED)

    reflector = Reflector(api, Collection("/pods"), read, clock, lambda: 1.0, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await reflector.run()
    return reflector, pauses


async def test_a_list_that_breaks_off_is_said(caplog: pytest.LogCaptureFixture) -> None:
    broken = ClusterError("broken", "it broke off its answer")
    reflector, _ = await followed(Script(broken, broken))
    assert reflector.problem == "it broke off its answer"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_watch_that_breaks_off_is_resumed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    broken = ClusterError("broken", "the watch broke off")
    reflector, pauses = await followed(Script(Listing([b"a"], "1"), [(), broken], [()]))
    assert (reflector.problem, set(reflector.sightings)) == (None, {"a"})
    assert len(pauses) == 2
    assert "WARNING" not in [record.levelname for record in caplog.records]


@pytest.mark.parametrize("opens", [False, True])
async def test_a_server_that_forgets_at_once_is_asked_ever_less_often(opens: bool) -> None:
    expired = ExpiredError("expired", "too old")
    calls: list[Exception | Listing | Sequence[Sequence[WatchEvent] | Exception]] = []
    for _ in range(7):
        calls += [Listing([], "1"), [(), expired] if opens else [expired]]
    _, pauses = await followed(Script(*calls))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_what_a_watch_brings_ends_the_caution() -> None:
    away = ClusterError("unreachable", "away")
    _, pauses = await followed(Script(away, away, away, Listing([], "1"), [(), [EVENT], away], away))
    assert pauses == [1, 2, 4, 1, 2]


async def test_a_watch_that_lasted_ends_the_caution() -> None:
    away, times = ClusterError("unreachable", "away"), iter(range(0, 1000, 10))
    _, pauses = await followed(Script(away, away, Listing([], "1"), [()], away), lambda: next(times))
    assert pauses == [1, 2, 1]
