"""A gateway service that decides nothing: requests go round robin to fixed endpoints. For tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.service.ports import Dispatch, Headers, Outcome, Reply, RequestHead
from warmroute.types import Endpoint


class StaticDispatch:
    """One attempt; keeps what it was told."""

    __slots__ = ("endpoint", "outcome", "pieces", "request_headers", "response_headers", "status", "tail")

    retriable = True
    """Whether it may be sent again."""

    def __init__(self, endpoint: Endpoint, request_headers: Headers = (), response_headers: Headers = ()) -> None:
        self.endpoint = endpoint
        self.request_headers = request_headers
        self.response_headers = response_headers
        self.status: int | None = None
        self.pieces = 0
        """Of the answer, behind the first."""
        self.outcome: Outcome | None = None
        self.tail = b""

    def answering(self, status: int) -> None:
        """The first byte of the answer's body came; fails if it came before or after the end."""
        if self.status is not None or self.outcome is not None:
            raise AssertionError(f"answering twice or after the end: {self.status}, {self.outcome}")
        self.status = status

    def progressed(self) -> None:
        """A further piece came; fails if there was no first, or an end."""
        if self.status is None or self.outcome is not None:
            raise AssertionError(f"a piece before the first or after the end: {self.status}, {self.outcome}")
        self.pieces += 1

    def finished(self, outcome: Outcome, tail: bytes = b"", status: int | None = None) -> None:
        """The attempt is over; fails if it was over already."""
        if self.outcome is not None:
            raise AssertionError(f"finished twice: {self.outcome}, {outcome}")
        if status is not None:
            self.answering(status)
        self.outcome = outcome
        self.tail = tail


class StaticService:
    """Dispatches round robin; `retries` further endpoints are tried where one cannot be reached."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        retries: int = 0,
        request_headers: Headers = (),
        response_headers: Headers = (),
        keep: bool = True,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.retries_left = retries
        self.request_headers = request_headers
        self.response_headers = response_headers
        self.keep = keep
        """Whether dispatches are kept in `dispatches`; False for long benchmarks."""
        self.dispatches: list[StaticDispatch] = []
        self._turn = 0

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply:  # noqa: ARG002 - the port's signature
        """The next endpoint's turn."""
        return self._next()

    def retry(self, dispatch: Dispatch) -> Dispatch | None:  # noqa: ARG002 - the port's signature
        """The next endpoint, while retries are left."""
        if not self.retries_left:
            return None
        self.retries_left -= 1
        return self._next()

    def _next(self) -> StaticDispatch:
        endpoint = self.endpoints[self._turn % len(self.endpoints)]
        self._turn += 1
        dispatch = StaticDispatch(endpoint, self.request_headers, self.response_headers)
        if self.keep:
            self.dispatches.append(dispatch)
        return dispatch
