"""Keys' use in a real Redis: two gateways count as one, and Redis being gone stops nobody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from warmroute.core.admission import Charge
from warmroute.edge.redis_limits import DOWN_S, RedisRates
from warmroute.service.admission import OwnRates
from warmroute.testing.redis_server import INSTALLED, RedisProcess, free_port

pytestmark = pytest.mark.skipif(
    not INSTALLED and "WARMROUTE_REQUIRE_REDIS" not in os.environ, reason="needs redis-server"
)


class Gateway:
    """One gateway's view of the rates; `now` is its own clock, not Redis'."""

    def __init__(self, url: str, password: str | None = None, timeout_s: float = 10.0) -> None:
        self.now = 0.0
        self.own = OwnRates(lambda: self.now)
        self.rates = RedisRates(url, password, timeout_s, self.own, lambda: self.now)

    async def take(self, cost: float = 1.0, per_min: int = 3, bucket: str = "alice:requests") -> float:
        wait_s = self.rates.take((Charge(bucket, per_min, cost),))
        return wait_s if isinstance(wait_s, float) else await wait_s

    async def settle(self, cost: float, per_min: int = 3, bucket: str = "alice:requests") -> None:
        self.rates.settle((Charge(bucket, per_min, cost),))
        await asyncio.gather(*self.rates._settling)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    async with RedisProcess(tmp_path) as process:
        yield process


async def test_two_gateways_count_as_one(redis: RedisProcess) -> None:
    one, two = Gateway(redis.url), Gateway(redis.url)
    two.now = 1e6  # their clocks need not agree
    assert [await one.take(), await two.take(), await one.take()] == [0.0] * 3
    for gateway in (one, two):
        assert 0 < await gateway.take() <= 20.0
        assert gateway.rates.failures == 0
        assert len(gateway.own.rates) == 0
    assert await one.take(bucket="bob:requests") == 0.0
    await one.rates.close()
    await two.rates.close()


async def test_the_buckets_are_those_of_the_process(redis: RedisProcess) -> None:
    """The same steps in Redis and in the process; Redis' own clock goes on by less than these steps can show."""
    gateway = Gateway(redis.url)
    own = OwnRates(lambda: 0.0)
    for kind, cost in [
        ("take", 70),
        ("take", 70),
        ("settle", -50),
        ("take", 70),
        ("settle", 500),
        ("take", 1),
        ("take", 0),
    ]:
        charge = Charge("k", 100, float(cost))
        if kind == "settle":
            own.settle((charge,))
            await gateway.settle(cost, 100, "k")
        else:
            expected = own.take((charge,))
            found = await gateway.take(cost, 100, "k")
            assert (found == 0) == (expected == 0), cost
            assert found == pytest.approx(expected, abs=10.0)
    await gateway.rates.close()


async def test_all_charges_are_taken_or_none(redis: RedisProcess) -> None:
    gateway = Gateway(redis.url)
    few, many = Charge("few", 1, 1.0), Charge("many", 5, 1.0)

    async def both() -> float:
        wait_s = gateway.rates.take((few, many))
        assert not isinstance(wait_s, float)
        return await wait_s

    assert await both() == 0.0
    assert await both() > 0
    assert [await gateway.take(per_min=5, bucket="many") for _ in range(4)] == [0.0] * 4
    await gateway.rates.close()


async def test_what_nobody_uses_leaves_redis(redis: RedisProcess) -> None:
    gateway = Gateway(redis.url)
    await gateway.take(cost=3.0)
    ttl = await gateway.rates._client.ttl("warmroute:alice:requests")
    assert 0 < ttl <= 61
    await gateway.settle(-3.0)
    assert await gateway.rates._client.dbsize() == 0
    await gateway.rates.close()


async def test_a_password_is_used(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path, password="word") as redis:
        right, wrong = Gateway(redis.url, "word"), Gateway(redis.url, "other")
        assert await right.take() == 0.0
        assert await wrong.take() == 0.0
        assert (right.rates.failures, wrong.rates.failures) == (0, 1)
        await right.rates.close()
        await wrong.rates.close()


async def test_without_redis_each_counts_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(f"redis://127.0.0.1:{free_port()}/0")
    assert [await gateway.take() for _ in range(3)] == [0.0] * 3
    assert await gateway.take() == 20.0
    await gateway.settle(-1.0)
    assert await gateway.take() == 0.0
    assert gateway.rates.failures == 1, "asked once, then left alone for a while"
    gateway.now += DOWN_S
    await gateway.take()
    assert gateway.rates.failures == 2
    assert len(caplog.records) == 1, "one outage is one line"
    await gateway.rates.close()


async def test_redis_that_comes_back_is_used_again(redis: RedisProcess) -> None:
    gateway = Gateway(redis.url)
    assert await gateway.take() == 0.0
    await redis.stop()
    assert [await gateway.take() for _ in range(3)] == [0.0] * 3
    assert gateway.rates.failures == 1
    await redis.start()
    gateway.now += DOWN_S
    assert [await gateway.take() for _ in range(3)] == [0.0] * 3  # a new Redis knows nothing, scripts included
    assert gateway.rates.failures == 1
    assert await gateway.take() > 0
    await gateway.rates.close()


async def test_redis_that_hangs_costs_one_timeout(redis: RedisProcess) -> None:
    gateway = Gateway(redis.url, timeout_s=2.0)
    assert await gateway.take() == 0.0
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    try:
        assert [await gateway.take() for _ in range(3)] == [0.0] * 3
        assert gateway.rates.failures == 1
    finally:
        redis.process.send_signal(signal.SIGCONT)
    await gateway.rates.close()


async def test_a_client_that_leaves_while_redis_is_asked(redis: RedisProcess) -> None:
    gateway = Gateway(redis.url)
    for _ in range(20):
        asking = asyncio.ensure_future(gateway.take(per_min=1000))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
    assert await gateway.take(per_min=1000) == 0.0  # no connection is left in the middle of an answer
    assert gateway.rates.failures == 0
    await gateway.rates.close()
