"""Admission as configured, or nothing at all: a gateway without limits has no gate that requests could stand at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from warmroute.config.ranges import by_model
from warmroute.config.tree import AdmissionConfig
from warmroute.core.admission import Gate, GateLimits
from warmroute.core.keys import Keys
from warmroute.core.sharing import Sharing
from warmroute.edge.files import read_text
from warmroute.errors import ConfigError
from warmroute.service.admission import Admission, KeyLimits, OwnRates, RateLimits
from warmroute.service.avoidance import Saturation
from warmroute.service.ports import GatewayService


class SharedRates(RateLimits, Protocol):
    """Rates that are kept elsewhere."""

    failures: int
    """Times that they could not be asked; the gateway counted by itself."""

    async def close(self) -> None:
        """Release the connections."""
        ...


class Limiting:
    """What limits there are. `service`: what clients are to be given."""

    def __init__(
        self,
        config: AdmissionConfig,
        inner: GatewayService,
        saturation: Saturation | None,
        clock: Callable[[], float],
        *,
        keyed: bool,
        sharing: Sharing | None = None,
    ) -> None:
        self.service = inner
        self.admission: Admission | None = None
        self.shared: SharedRates | None = None
        self._clock = clock
        self._config = config
        self._own = OwnRates(clock)
        if not keyed and not limits_anything(config):
            return
        rates: RateLimits = self._own
        if config.redis_url is not None:
            rates = self.shared = _redis_rates(config, self._own, clock)
        self.service = self.admission = Admission(
            inner,
            Gate(_gate_limits(config), saturation.room if saturation is not None else None, sharing),
            rates,
            clock,
            key_limits=_key_limits(config),
            body_bytes_max=_body_limits(config),
        )

    def reconfigure(self, config: AdmissionConfig) -> None:
        """Take up what is configured now, if there is a gate."""
        self._config = config
        if self.admission is not None:
            self.admission.reconfigure(_gate_limits(config), _key_limits(config), _body_limits(config))

    def ask_for_keys(self, keys: Callable[[], Keys | None]) -> None:
        """Where to find the keys that are in force."""
        if self.admission is not None:
            self.admission.keys = keys

    def tick(self) -> None:
        """Room may have come without anybody's word; what nobody uses is forgotten."""
        if self.admission is not None:
            self.admission.advance()
            self._own.rates.forget_full(self.admission.bucket_limits(), self._clock())

    def look(self) -> None:
        """Another process may have made room: let in who waits for it."""
        if self.admission is not None and len(self.admission.gate):
            self.admission.advance()

    def numbers(self) -> dict[tuple[str, ...], float]:
        """What goes up and down."""
        if self.admission is None:
            return {}
        gate = self.admission.gate
        numbers = {"inside": gate.inside, "waiting": len(gate), "own_buckets": len(self._own.rates)}
        return {(state,): float(number) for state, number in numbers.items()}

    def counts(self) -> dict[tuple[str, ...], float]:
        """What only goes up: requests that waited or were refused, and the times Redis could not be asked."""
        if self.admission is None:
            return {}
        counts = {f"refused:{reason}": number for reason, number in self.admission.refused.items()}
        counts |= {"waited": self.admission.waited, "redis_failures": self.shared.failures if self.shared else 0}
        return {(event,): float(number) for event, number in counts.items()}

    async def close(self) -> None:
        """Release what is held elsewhere."""
        if self.shared is not None:
            await self.shared.close()


def limits_anything(config: AdmissionConfig) -> bool:
    """Whether requests must stand at a gate, keys or not."""
    set_by_somebody = (
        config.requests_max,
        config.model_requests_max,
        config.model_body_bytes_max,
        config.worker_requests_max,
    )
    return any(limit is not None for limit in set_by_somebody)


def _gate_limits(config: AdmissionConfig) -> GateLimits:
    return GateLimits(
        requests_max=config.requests_max,
        models=by_model(config.model_requests_max) if config.model_requests_max else {},
        queue_max=config.queue_requests_max,
        wait_s_max=config.queue_timeout_s,
    )


def _key_limits(config: AdmissionConfig) -> KeyLimits:
    return KeyLimits(requests_per_min=config.key_requests_per_min, tokens_per_min=config.key_tokens_per_min)


def _body_limits(config: AdmissionConfig) -> dict[str, int]:
    return by_model(config.model_body_bytes_max) if config.model_body_bytes_max else {}


def _redis_rates(config: AdmissionConfig, own: RateLimits, clock: Callable[[], float]) -> SharedRates:
    try:
        from warmroute.edge.redis_limits import RedisRates  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "admission.redis_url", "needs a client for Redis", "Install it: pip install 'warmroute[redis]'."
        ) from error
    path = config.redis_password_file
    password = None if path is None else read_text(path, "admission.redis_password_file").strip()
    return RedisRates(config.redis_url or "", password, config.redis_timeout_s, own, clock)
