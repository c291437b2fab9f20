"""What keys have used, kept in Redis, so that several gateways count as one.

The buckets are those of `core.admission.Rates`; one script does what its methods do, by Redis' own clock, so gateways
whose clocks differ still agree. One round trip per request, one more behind its end.

Invariant: Redis being slow, full or gone fails and delays no request beyond one timeout: for a second after a failure
the gateway counts by itself, and `failures` says how often it came to that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from warmroute.core.admission import Charge

_log = logging.getLogger(__name__)

PREFIX = "warmroute:"
DOWN_S = 1.0
"""How long Redis is not asked again after a failure."""

# KEYS: buckets. ARGV: "take" or "settle", then limit and cost of each bucket. The wait in seconds; "0": taken.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local levels, wait = {}, 0
for i, key in ipairs(KEYS) do
  local limit, cost = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local kept = redis.call('HMGET', key, 'level', 'at')
  local level = limit
  if kept[1] then
    level = math.min(limit, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * limit / 60)
  end
  levels[i] = level
  wait = math.max(wait, (math.min(cost, limit) - level) * 60 / limit)
end
if ARGV[1] == 'take' and wait > 0 then
  return string.format('%.6f', wait)
end
for i, key in ipairs(KEYS) do
  local limit, left = tonumber(ARGV[2 * i]), levels[i] - tonumber(ARGV[2 * i + 1])
  if left >= limit then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, 'level', string.format('%.6f', left), 'at', string.format('%.6f', now))
    redis.call('EXPIRE', key, math.ceil((limit - left) * 60 / limit) + 1)
  end
end
return '0'
"""


class _Own(Protocol):
    """Who counts while Redis cannot."""

    def take(self, charges: tuple[Charge, ...]) -> float | Awaitable[float]: ...

    def settle(self, charges: tuple[Charge, ...]) -> None: ...


class RedisRates:
    """The port `RateLimits`, by Redis; `own` counts while it cannot be asked."""

    def __init__(self, url: str, password: str | None, timeout_s: float, own: _Own, clock: Callable[[], float]) -> None:
        self.failures = 0
        self._client = Redis.from_url(url, password=password, decode_responses=True)
        self._script = self._client.register_script(_SCRIPT)
        self._timeout_s = timeout_s
        self._own = own
        self._clock = clock
        self._down_until = float("-inf")
        self._settling: set[asyncio.Task[None]] = set()

    def take(self, charges: tuple[Charge, ...]) -> float | Awaitable[float]:
        """Take all charges or none."""
        return self._own.take(charges) if self._clock() < self._down_until else self._take(charges)

    def settle(self, charges: tuple[Charge, ...]) -> None:
        """Take without asking, or give back; behind the request's back."""
        if self._clock() < self._down_until:
            self._own.settle(charges)
            return
        task = asyncio.get_running_loop().create_task(self._settle(charges))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Let what is being settled be settled, and close the connections."""
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self._client.aclose()

    async def _take(self, charges: tuple[Charge, ...]) -> float:
        wait_s = await self._run("take", charges)
        if wait_s is not None:
            return wait_s
        own = self._own.take(charges)
        return own if isinstance(own, float) else await own

    async def _settle(self, charges: tuple[Charge, ...]) -> None:
        if await self._run("settle", charges) is None:
            self._own.settle(charges)

    async def _run(self, what: str, charges: tuple[Charge, ...]) -> float | None:
        """The script's answer, or None if there is none."""
        arguments = [what, *(str(number) for charge in charges for number in (charge.per_min, charge.cost))]
        try:
            async with asyncio.timeout(self._timeout_s):
                return float(await self._script([PREFIX + charge.bucket for charge in charges], arguments))
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            if not self.failures or self._clock() >= self._down_until + DOWN_S:
                _log.warning("Redis cannot be asked (%s): this gateway counts by itself", type(error).__name__)
            self.failures += 1
            self._down_until = self._clock() + DOWN_S
            return None
