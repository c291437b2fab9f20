"""The other processes of one gateway: asked for what they know, so that any of them can answer for all.

A client or an operator reaches whichever process the system gives the connection to. What a process alone cannot answer
(metrics, workers, decisions) it asks of its fellows, by way of the control process, and puts the answers together::

    process 1 -- ASK --> control -- ASK --> 0, 2          ASKED says how many answers will come
    process 1 <- ANSWER - control <- ANSWER -- 0, 2

Invariant: an answer is given in time whatever the fellows do; who was silent is counted, and left out.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import msgspec

from warmroute.service.ports import LocalReply, Reply
from warmroute.service.status import last_asked
from warmroute.types import TrustState

ANSWER_S = 2.0
"""A fellow that is silent for longer is left out."""
RELOAD_ANSWER_S = 15.0
"""How long the control process is waited for: it reads the configuration, and asks all processes, before it answers."""

_FAMILY = re.compile(rb"^# HELP ", re.MULTILINE)


class Kind(enum.StrEnum):
    """What processes and their control say to each other."""

    READY = "ready"
    """To the control: I serve."""
    ASK = "ask"
    """Answer this path (the body) from what you know."""
    ASKED = "asked"
    """So many (the status) were asked."""
    ANSWER = "answer"
    DRAIN = "drain"
    """To a process: take nothing new, end when what runs has ended."""
    RELOAD = "reload"
    """To the control: read the configuration again; the answer says what came of it."""
    PREPARE = "prepare"
    """To a process: could you take up this configuration (the body)?"""
    PREPARED = "prepared"
    """Yes (status 0), or why not (the body)."""
    COMMIT = "commit"
    """To a process: take it up."""
    ENGINE = "engine"
    """An operator has changed the fleet (the body)."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message between a process and the control process."""

    kind: Kind
    process: int = 0
    """Who is meant, to the control process; who says it, from there."""
    number: int = 0
    """Which question it belongs to."""
    status: int = 0
    body: bytes = b""


class _Question:
    """One that is asked now."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.asked: int | None = None
        self.done = asyncio.Event()

    def advance(self) -> None:
        if self.asked is not None and len(self.answers) >= self.asked:
            self.done.set()


class Fellows:
    """What one process says to the others, and what it answers them. `send` gives a message to the control process."""

    def __init__(self, process: int, send: Callable[[Message], None]) -> None:
        self.process = process
        self.silent = 0
        """Answers that did not come in time."""
        self.on: dict[Kind, Callable[[Message], None]] = {Kind.ASK: self._answer}
        """What to do at each kind of message."""
        self._send = send
        self._local: dict[str, Callable[[str], Reply]] = {}
        self._questions: dict[int, _Question] = {}
        self._numbers = count(1)
        self.on[Kind.ASKED] = self.on[Kind.ANSWER] = self._answered

    def took(self, message: Message) -> None:
        """A message came from the control process."""
        self.on[message.kind](message)

    def tell(self, kind: Kind, **fields: Any) -> None:
        """Say something to the control process."""
        self._send(Message(kind, **fields))

    def for_all(self, replies: Mapping[str, Callable[[str], Reply]]) -> dict[str, LocalReply]:
        """The same replies, but where a process alone knows too little: these are put together from everybody's."""
        self._local = {path: own for path, own in replies.items() if path in MERGES}
        return {path: self._together(path, own) if path in MERGES else own for path, own in replies.items()}

    def _together(self, path: str, own: Callable[[str], Reply]) -> LocalReply:
        async def reply(target: str) -> Reply:
            return MERGES[path](target, [own(target), *await self._ask(target)])

        return reply

    async def reload(self) -> Reply:
        """What comes of reading the configuration again, in all processes."""
        answers = await self._ask("", Kind.RELOAD, RELOAD_ANSWER_S)
        late = Reply(504, b'{"error": {"message": "The control process does not say what came of it."}}')
        return answers[0] if answers else late

    async def _ask(self, target: str, kind: Kind = Kind.ASK, patience_s: float = ANSWER_S) -> list[Reply]:
        number, question = next(self._numbers), _Question()
        self._questions[number] = question
        self.tell(kind, number=number, body=target.encode("latin-1"))
        try:
            async with asyncio.timeout(patience_s):
                await question.done.wait()
        except TimeoutError:
            self.silent += (question.asked or 1) - len(question.answers)
        finally:
            del self._questions[number]
        return question.answers

    def _answer(self, message: Message) -> None:
        target = message.body.decode("latin-1")
        path = target.partition("?")[0]
        own = self._local.get(path) or self._local[path[: path.rfind("/") + 1]]
        reply = own(target)
        self.tell(Kind.ANSWER, process=message.process, number=message.number, status=reply.status, body=reply.body)

    def _answered(self, message: Message) -> None:
        question = self._questions.get(message.number)
        if question is None:
            return  # it came too late, and was counted
        if message.kind is Kind.ASKED:
            question.asked = message.status
        else:
            question.answers.append(Reply(message.status, message.body))
        question.advance()


def merged_metrics(_target: str, replies: Sequence[Reply]) -> Reply:
    """Every process's samples, which bear its number, each family's together, as the format wants it."""
    families: dict[bytes, tuple[bytes, list[bytes]]] = {}
    for reply in replies:
        for family in _FAMILY.split(reply.body)[1:]:
            help_line, type_line, *samples = family.splitlines(keepends=True)
            name = help_line.partition(b" ")[0]
            families.setdefault(name, (b"# HELP " + help_line + type_line, []))[1].extend(samples)
    body = b"".join(head + b"".join(samples) for head, samples in families.values())
    return Reply(replies[0].status, body, replies[0].content_type)


_LEAST_TRUST = (TrustState.LIVE, TrustState.REPLAYING, TrustState.DEGRADED, TrustState.BLIND)


def merged_workers(_target: str, replies: Sequence[Reply]) -> Reply:
    """The first one's view, with everybody's load added up; as much trust, and as ready, as the least of all."""
    views = [msgspec.json.decode(reply.body) for reply in replies]
    body = views[0]
    others: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for view in views[1:]:
        for worker in view["workers"]:
            others.setdefault((worker["address"], worker["rank"]), []).append(worker)
    for worker in body["workers"]:
        same = [worker, *others.get((worker["address"], worker["rank"]), [])]
        worker["trust"] = max((each["trust"] for each in same), key=lambda trust: _LEAST_TRUST.index(trust["state"]))
        worker["ready"] = all(each["ready"] for each in same)
        worker["load"] = {name: sum(each["load"][name] for each in same) for name in worker["load"]}
        worker["processes"] = len(same)
    return Reply(200, msgspec.json.encode(body))


def found_decision(_target: str, replies: Sequence[Reply]) -> Reply:
    """The answer of the process that decided."""
    return next((reply for reply in replies if reply.status == 200), replies[0])


def merged_decisions(target: str, replies: Sequence[Reply]) -> Reply:
    """The last decisions of all, the newest first."""
    lists = [msgspec.json.decode(reply.body)["decisions"] for reply in replies]
    newest = sorted((decision for each in lists for decision in each), key=lambda decision: decision["age_s"])
    return Reply(200, msgspec.json.encode({"decisions": newest[: last_asked(target)]}))


MERGES: Final[Mapping[str, Callable[[str, Sequence[Reply]], Reply]]] = {
    "/metrics": merged_metrics,
    "/workers": merged_workers,
    "/decisions/": found_decision,
    "/decisions": merged_decisions,
}
"""Path -> how everybody's replies become one."""
