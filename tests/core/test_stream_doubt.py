"""What a stream does about what it cannot know: it asks silent engines, doubts mute ones, rebuilds flawed views."""

from __future__ import annotations

from stream_rig import Rig, batch

from warmroute.core.stream import PROBE_FIRST_S
from warmroute.core.stream_states import EndReplay, State
from warmroute.types import TrustState


def test_a_failed_replay_is_tried_again_and_rebuilds() -> None:
    rig = Rig(reconnect_backoff_s=1.0, reconnect_backoff_max_s=3.0).up()
    rig.hear(7)
    rig.replay_failed("timeout", 0.0)
    rig.tick(0.9)
    assert rig.asked() == [0]
    rig.tick(1.0)
    rig.replay_failed("timeout", 1.0)
    rig.tick(2.9)
    assert rig.asked() == [0, 0]
    rig.tick(3.0)
    assert rig.asked() == [0, 0, 0]
    rig.hear(8)
    assert rig.applied == [7, 8], "live goes on until the replay speaks"
    rig.reply(range(9))
    assert rig.applied == list(range(9))
    assert rig.stream.trust is TrustState.LIVE
    rig.tick(10.0)
    assert rig.asked() == [0, 0, 0, 8], "one look at whether it was all"


def test_a_flaw_that_every_rebuild_meets_again_is_not_rebuilt_for_ever() -> None:
    rig = Rig(reconnect_backoff_s=1.0, reconnect_backoff_max_s=1.0).synced(2)
    rig.undecodable(2, "not_msgpack", 0.0)
    for second in range(1, 40):
        rig.tick(float(second))
        if rig.last:
            rig.reply(range(2), end=False)
            rig.undecodable(2, "not_msgpack", float(second), replayed=True)
            rig.replay_ended(float(second))
    assert rig.asked().count(0) == 3
    assert rig.stream.trust is TrustState.DEGRADED
    rig.undecodable(3, "not_msgpack", 40.0)
    rig.tick(40.0)
    rig.tick(42.0)
    assert rig.asked()[-1] == 0, "a new one is"


def test_a_rebuild_that_would_know_less_is_left() -> None:
    rig = Rig(reconnect_backoff_s=1.0).up()
    rig.hear(7)
    rig.replay_failed("timeout", 0.0)
    rig.tick(1.0)
    rig.reply([7], end=False)
    assert rig.last == [EndReplay()]
    assert (rig.stream.trust, rig.applied) == (TrustState.DEGRADED, [7])


def test_a_silent_engine_is_probed() -> None:
    rig = Rig(probe_idle_s=30.0).synced(2)
    rig.hear(2)
    rig.tick(29.9)
    assert rig.asked() == []
    rig.tick(30.0)
    assert rig.asked() == [2]
    assert rig.stream.trust is TrustState.LIVE
    rig.reply([2], end=False)
    assert rig.stream.trust is TrustState.LIVE
    rig.reply([3], end=False)
    assert (rig.stream.state, rig.counted("tails")) == (State.GAP, 1)
    rig.replay_ended(30.0)
    assert rig.applied == [2, 3], "the tail was lost; nothing newer would have shown it"
    assert rig.stream.trust is TrustState.LIVE


def test_what_was_published_while_the_subscription_was_on_its_way_is_asked_for_soon() -> None:
    rig = Rig().synced(3)
    rig.tick(PROBE_FIRST_S - 0.1)
    assert rig.asked() == []
    rig.tick(PROBE_FIRST_S)
    assert rig.asked() == [2]


def test_a_probe_that_finds_another_run_starts_over() -> None:
    rig = Rig().synced(3)
    rig.tick(PROBE_FIRST_S)
    rig.replay_ended(2.0)
    assert rig.purged()
    assert (rig.stream.trust, rig.asked()) == (TrustState.REPLAYING, [2, 0])


def test_a_silent_engine_whose_replay_answers_no_more_is_doubted() -> None:
    rig = Rig(probe_idle_s=30.0, reconnect_backoff_s=1.0).synced(3)
    rig.tick(30.0)
    rig.replay_failed("timeout", 35.0)
    assert (rig.stream.trust, rig.reason) == (TrustState.DEGRADED, "silent, and its replay does not answer any more")
    rig.live(3, batch(3), 35.5)
    assert rig.stream.trust is TrustState.DEGRADED, "it may be the first of many that were stuck on the way"
    assert rig.asked() == [2, 3]
    rig.reply([3, 4])
    assert rig.stream.trust is TrustState.LIVE


def test_an_engine_that_goes_on_is_believed_without_a_replay() -> None:
    rig = Rig(probe_idle_s=30.0).synced(3)
    rig.tick(30.0)
    rig.live(3, batch(3), 31.0)
    rig.replay_failed("timeout", 35.0)
    assert rig.stream.trust is TrustState.LIVE


def test_an_engine_whose_replay_never_answered_is_not_doubted() -> None:
    rig = Rig(probe_idle_s=30.0).up()
    rig.replay_failed("timeout", 5.0)
    rig.live(0, batch(0), 6.0)
    rig.tick(40.0)
    rig.replay_failed("timeout", 45.0)
    assert rig.stream.trust is TrustState.LIVE


def test_repetitions_do_not_keep_the_probe_away() -> None:
    rig = Rig(probe_idle_s=30.0).synced(3)
    for second in range(1, 31):
        rig.live(1, batch(1), float(second))
    rig.tick(30.0)
    assert rig.asked() == [2]
