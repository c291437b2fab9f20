"""Any of several processes answers for all: whatever the others do, in time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from warmroute.edge.channel import Frames, framed
from warmroute.service import fellows as module
from warmroute.service.fellows import Fellows, Kind, Message, merged_metrics, merged_workers
from warmroute.service.ports import Reply


class Pair:
    """Two processes, and a control that takes messages from one to the other at once."""

    def __init__(self) -> None:
        self.deaf = False
        self.asked = [0, 0]
        self.both = [Fellows(number, lambda message, number=number: self.take(number, message)) for number in (0, 1)]
        self.routes = []
        for number, fellow in enumerate(self.both):
            own = {"/decisions/": lambda target, number=number: self.decided(number, target), "/health": self.healthy}
            self.routes.append(fellow.for_all(own))

    def decided(self, number: int, target: str) -> Reply:
        self.asked[number] += 1
        found = target.endswith(f"/of-{number}")
        return Reply(200 if found else 404, b"%d" % number)

    def healthy(self, _: str) -> Reply:
        return Reply(200, b"")

    def take(self, sender: int, message: Message) -> None:
        other = self.both[1 - sender]
        forwarded = msgspec.structs.replace(message, process=sender)
        if message.kind is Kind.ASK:
            if not self.deaf:
                other.took(forwarded)
            self.both[sender].took(Message(Kind.ASKED, number=message.number, status=1))
        else:
            other.took(forwarded)

    async def get(self, of: int, target: str) -> Reply:
        reply = self.routes[of]["/decisions/"](target)
        return reply if isinstance(reply, Reply) else await reply


async def test_whoever_knows_answers() -> None:
    pair = Pair()
    for of in (0, 1):
        for known_by in (0, 1):
            assert (await pair.get(of, f"/decisions/of-{known_by}")).body == b"%d" % known_by
        assert (await pair.get(of, "/decisions/of-nobody")).status == 404
    assert pair.asked == [6, 6]
    assert isinstance(pair.routes[0]["/health"]("/health"), Reply), "what one knows is not asked of all"


async def test_who_is_silent_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fellows._ask, "__defaults__", (Kind.ASK, 0.01))
    pair = Pair()
    pair.deaf = True
    assert (await pair.get(0, "/decisions/of-1")).status == 404
    assert pair.both[0].silent == 1
    pair.both[0].took(Message(Kind.ANSWER, process=1, number=1, status=200))  # it comes too late
    assert not pair.both[0]._questions
    assert module.ANSWER_S > 0


async def test_questions_at_once_do_not_mix() -> None:
    pair = Pair()
    targets = [f"/decisions/of-{n % 3}" for n in range(9)]
    replies = await asyncio.gather(*(pair.get(0, target) for target in targets))
    assert [reply.status for reply in replies] == [200, 200, 404] * 3


def test_metrics_of_all_are_one_exposition() -> None:
    def exposition(process: int) -> Reply:
        text = (
            "# HELP a_total Things: # TYPE is a word\n# TYPE a_total counter\n"
            f'a_total{{process="{process}"}} {process}.0\n'
            "# HELP b Others\n# TYPE b gauge\n" + (f'b{{process="{process}"}} 1.0\n' if process else "")
        )
        return Reply(200, text.encode(), b"text/plain")

    merged = merged_metrics("/metrics", [exposition(1), exposition(0)])
    families = {family.name: family for family in text_string_to_metric_families(merged.body.decode())}
    assert [(s.labels, s.value) for s in families["a"].samples] == [({"process": "1"}, 1.0), ({"process": "0"}, 0.0)]
    assert len(families["b"].samples) == 1
    assert merged.body.count(b"# HELP a_total") == 1
    assert merged.content_type == b"text/plain"


def test_a_worker_is_as_good_as_the_process_that_thinks_least_of_it() -> None:
    def view(state: str, *, ready: bool, requests: int) -> Reply:
        worker = {
            "address": "http://a:1",
            "rank": 0,
            "ready": ready,
            "trust": {"state": state},
            "load": {"requests": requests, "decoding": 1},
        }
        return Reply(200, msgspec.json.encode({"workers": [worker], "engines": []}))

    replies = [view("LIVE", ready=True, requests=1), view("DEGRADED", ready=False, requests=2)]
    (worker,) = msgspec.json.decode(merged_workers("/workers", replies).body)["workers"]
    assert (worker["trust"]["state"], worker["ready"], worker["processes"]) == ("DEGRADED", False, 2)
    assert worker["load"] == {"requests": 3, "decoding": 2}


@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
def test_messages_come_whole_however_they_are_cut(step: int) -> None:
    sent = [Message(Kind.ASK, 1, 2, 3, b"x" * size) for size in (0, 1, 300)]
    data = b"".join(map(framed, sent))
    frames = Frames()
    assert [m for at in range(0, len(data), step) for m in frames.feed(data[at : at + step])] == sent
