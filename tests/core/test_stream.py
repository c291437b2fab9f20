"""One stream's decisions, case by case; the conformance cases by their ids."""

from __future__ import annotations

import pytest
from stream_rig import Rig, batch

from warmroute.config.tree import EventsConfig
from warmroute.core.stream import NO_ENDPOINT, Stream
from warmroute.core.stream_states import (
    TRANSITIONS,
    Cause,
    Count,
    EndReplay,
    Replay,
    State,
)
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, RejectedEvent
from warmroute.types import TrustState

# Conformance.


def test_c2() -> None:
    rig = Rig().synced(6)
    rig.hear(8)
    assert rig.stream.state is State.GAP
    assert rig.stream.trust is TrustState.REPLAYING
    assert rig.counted("missed") == 2
    assert rig.counted("gaps") == 1
    assert rig.asked() == [5], "one before the first missing one: the anchor"
    assert rig.applied == []
    rig.reply([5, 6, 7, 8])
    assert rig.applied == [6, 7, 8]
    assert rig.counted("lost") == 0
    assert rig.stream.trust is TrustState.LIVE


def test_c4() -> None:
    rig = Rig().synced(6)
    rig.hear(100)
    rig.reply(list(range(90, 101)))
    assert rig.purged()
    assert rig.applied == list(range(90, 101))
    assert rig.counted("lost") == 84
    assert rig.stream.trust is TrustState.DEGRADED
    assert rig.reason == "84 batches lost: the engine's replay buffer was too short"


def test_c8() -> None:
    rig = Rig().up()
    rig.hear(0, 1, 2)
    rig.reply([0, 1, 2, 3])
    rig.hear(2, 3, 4)
    assert rig.applied == [0, 1, 2, 3, 4]
    assert rig.counted("duplicates") == 2
    assert rig.counted("restarts") == 0
    assert rig.stream.trust is TrustState.LIVE


def test_c10() -> None:
    rig = Rig().synced(3)
    rig.undecodable(3, "not_msgpack", 0.0)
    assert rig.counted("undecodable") == 1
    assert rig.stream.trust is TrustState.DEGRADED
    assert rig.reason == "batch 3 could not be read: not_msgpack"
    rig.hear(4)
    assert rig.applied == [4]
    assert rig.counted("gaps") == 0


def test_t30() -> None:
    rig = Rig().synced(901)
    rig.live(0, batch(0, ts=5000.0), 0.0)
    assert rig.purged()
    assert rig.asked() == [0]
    assert rig.counted("restarts") == 1
    assert rig.applied == [0]
    assert rig.stream.state is State.RESYNC


# Joining.


def test_a_quiet_engine_is_in_sync() -> None:
    rig = Rig().up()
    assert rig.asked() == [0]
    assert rig.stream.trust is TrustState.REPLAYING
    rig.replay_ended(0.0)
    assert (rig.stream.trust, rig.stream.state, rig.stream.expected) == (TrustState.LIVE, State.LIVE, 0)
    assert isinstance(rig.last[0], EndReplay)


def test_live_batches_wait_for_what_was_before_them() -> None:
    rig = Rig().up()
    rig.hear(5, 6)
    assert rig.applied == []
    rig.reply(range(6))
    assert rig.applied == list(range(7))
    assert rig.stream.trust is TrustState.LIVE


def test_a_replay_that_begins_late_is_a_late_join() -> None:
    rig = Rig().up()
    rig.reply([400, 401])
    assert rig.applied == [400, 401]
    assert not rig.purged()
    assert rig.counted("lost") == 400
    assert rig.stream.trust is TrustState.DEGRADED


@pytest.mark.parametrize("reason", [NO_ENDPOINT, "timeout"])
def test_without_a_replay_the_first_number_decides(reason: str) -> None:
    rig = Rig().up()
    rig.replay_failed(reason, 0.0)
    assert (rig.stream.trust, rig.stream.expected) == (TrustState.BLIND, None)
    rig.hear(0)
    assert rig.stream.trust is TrustState.LIVE

    rig = Rig().up()
    rig.hear(7)
    rig.replay_failed(reason, 0.0)
    assert rig.applied == [7]
    assert rig.stream.trust is TrustState.DEGRADED
    assert rig.reason == f"7 batches lost: no replay: {reason}"

    rig = Rig().up()
    rig.replay_failed(reason, 0.0)
    rig.hear(7)
    assert rig.applied == [7]
    assert rig.stream.trust is TrustState.DEGRADED


def test_a_run_followed_from_its_first_batch_needs_no_replay() -> None:
    rig = Rig().up()
    rig.hear(0, 1)
    rig.replay_failed("timeout", 0.0)
    assert rig.stream.trust is TrustState.LIVE


def test_a_message_outside_a_connection_is_left_to_the_replay() -> None:
    rig = Rig().synced(2)
    rig.disconnected(0.0)
    rig.hear(2)
    assert (rig.counted("strays"), rig.asked(), rig.stream.state) == (1, [], State.CONNECTING)
    rig.connected(0.0)
    rig.reply(range(1, 3))
    assert rig.applied == [2]
    assert rig.stream.trust is TrustState.LIVE


# Gaps.


def test_a_gap_that_no_replay_fills_credits_nothing_stale() -> None:
    rig = Rig().synced(3)
    rig.hear(5, 6)
    rig.replay_failed(NO_ENDPOINT, 0.0)
    assert rig.purged()
    assert rig.applied == [5, 6]
    assert rig.counted("lost") == 2
    assert rig.stream.trust is TrustState.DEGRADED


def test_a_hole_in_a_replay_is_asked_for_again_from_the_hole() -> None:
    rig = Rig().up()
    rig.reply([0, 1, 2, 5, 6])
    assert rig.asked() == [0, 2]
    assert rig.applied == [0, 1, 2]
    rig.reply([2, 3, 4, 5, 6])
    assert rig.applied == [0, 1, 2, 3, 4, 5, 6]
    assert rig.stream.trust is TrustState.LIVE


def test_a_hole_that_stays_is_given_up() -> None:
    rig = Rig().up()
    rig.reply([0, 1, 4])
    for _ in range(3):
        assert rig.stream.state is State.REPLAYING
        rig.reply([1, 4])
    assert rig.stream.state is State.LIVE
    assert rig.purged()
    assert rig.applied == [4]
    assert rig.counted("lost") == 2
    assert rig.stream.trust is TrustState.DEGRADED


def test_a_replay_that_stalls_is_asked_for_again_from_where_it_stalled() -> None:
    rig = Rig().up()
    rig.reply([0, 1, 2], end=False)
    rig.replay_failed("timeout", 0.0)
    assert rig.asked() == [0, 2]
    rig.reply([2, 3])
    assert rig.applied == [0, 1, 2, 3]
    assert rig.stream.trust is TrustState.LIVE


def test_batches_that_are_too_many_to_wait_are_asked_for_again() -> None:
    rig = Rig(pending_batches_max=3).synced(2)
    rig.hear(4, 5, 6, 7, 8)
    assert rig.counted("overflows") == 2
    rig.reply(range(1, 4))
    assert (rig.applied, rig.asked()) == ([2, 3, 4, 5, 6], [1, 6])
    assert rig.stream.trust is TrustState.REPLAYING, "there are newer ones, as is known"
    rig.reply(range(6, 9))
    assert rig.applied == list(range(2, 9))
    assert rig.stream.trust is TrustState.LIVE
    assert not rig.purged()


def test_an_engine_that_publishes_faster_than_it_replays_is_followed_in_the_end() -> None:
    rig = Rig(pending_batches_max=1).up()
    rig.hear(*range(5, 30))
    rig.replay_failed("timeout", 0.0)
    assert (rig.applied, rig.asked(), rig.stream.state) == ([5], [0, 5], State.REPLAYING)
    rig.reply(range(5, 30))
    assert rig.applied == list(range(5, 30))
    assert rig.stream.trust is TrustState.DEGRADED


def test_behind_a_hole_that_stays_what_overflowed_is_still_fetched() -> None:
    """Not live in between: a newer batch is known to exist."""
    rig = Rig(pending_batches_max=1).synced(2)
    cleared = batch(3, events=(AllBlocksCleared(),))
    rig.live(3, cleared, 0.0)
    rig.hear(4)
    for start in (1, 1, 1, 1):
        assert rig.asked()[-1] == start
        rig.reply([1], end=False)
        rig.replayed(3, cleared, 0.0)
        rig.reply([4])
    assert (rig.applied, rig.asked()[-1], rig.stream.trust) == ([3], 3, TrustState.REPLAYING)
    rig.replayed(3, cleared, 0.0)
    rig.reply([4])
    assert rig.applied == [3, 4]
    assert rig.stream.trust is TrustState.LIVE, "whatever was lost was before the clear"


# Restarts and reconnects.


def test_a_short_break_is_healed_by_a_replay_from_the_anchor() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    assert rig.stream.trust is TrustState.DEGRADED
    assert rig.reason == "disconnected"
    rig.connected(0.0)
    assert rig.asked() == [3]
    rig.reply([3, 4])
    assert not rig.purged()
    assert rig.applied == [4]
    assert rig.stream.trust is TrustState.LIVE


def test_a_new_run_that_is_shorter_shows_itself_by_its_silence() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    rig.connected(0.0)
    rig.replay_ended(0.0)
    assert rig.purged()
    assert rig.asked() == [3, 0]
    rig.reply(range(2))
    assert rig.applied == [0, 1]
    assert rig.stream.trust is TrustState.LIVE


def test_a_new_run_without_batches_shows_itself_even_if_only_one_was_known() -> None:
    rig = Rig().synced(1)
    rig.disconnected(0.0)
    rig.connected(0.0)
    rig.replay_ended(0.0)
    assert rig.purged()
    assert rig.asked() == [0, 0]
    rig.replay_ended(0.0)
    assert (rig.stream.trust, rig.stream.expected) == (TrustState.LIVE, 0)


def test_a_new_run_that_is_longer_shows_itself_by_its_anchor() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    rig.connected(0.0)
    rig.live(4, batch(4, ts=9004.0), 0.0)
    assert rig.applied == [], "unverified: the next number may be another run's"
    rig.replayed(3, batch(3, ts=9003.0), 0.0)
    assert rig.purged()
    assert rig.asked() == [3, 0]
    assert rig.counted("restarts") == 1


def test_a_reconnect_that_cannot_be_verified_forgets() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    rig.connected(0.0)
    rig.replay_failed(NO_ENDPOINT, 0.0)
    assert rig.purged()
    assert rig.stream.trust is TrustState.BLIND
    rig.hear(4)
    assert rig.stream.trust is TrustState.DEGRADED


def test_the_engine_lost_its_anchor() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    rig.connected(0.0)
    rig.reply([4, 5])
    assert rig.purged()
    assert rig.applied == [4, 5]
    assert rig.reason == "no batches lost: the engine's replay buffer was too short"


def test_a_restart_that_somebody_else_saw() -> None:
    rig = Rig().synced(4)
    rig.restarted(0.0, process_start=999.0)
    assert not rig.purged(), "what is known is younger than the process"
    rig.restarted(0.0, process_start=2000.0)
    assert rig.purged()
    assert rig.asked() == [0]
    rig.done.clear()
    rig.restarted(0.0)
    assert rig.done == [], "there is nothing left that could be stale"


def test_a_restart_seen_while_disconnected_purges_at_once() -> None:
    rig = Rig().synced(4)
    rig.disconnected(0.0)
    rig.restarted(0.0)
    assert rig.purged()
    assert rig.stream.trust is TrustState.BLIND
    rig.connected(0.0)
    assert rig.asked() == [0]


@pytest.mark.parametrize("known", [5, 3000])
def test_a_late_repetition_is_no_restart(known: int) -> None:
    rig = Rig().synced(known)
    rig.hear(1)
    assert rig.counted("duplicates") == 1
    assert not rig.purged()


def test_an_engine_whose_clock_stands_still_restarts_visibly() -> None:
    rig = Rig().up()
    for seq in range(3):
        rig.live(seq, batch(seq, ts=1.0), 0.0)
    rig.replay_ended(0.0)
    rig.live(0, batch(7, ts=1.0), 0.0)
    assert rig.counted("restarts") == 1


def test_a_time_that_is_no_number_equals_itself() -> None:
    rig = Rig().up()
    rig.live(0, batch(0, ts=float("nan")), 0.0)
    rig.replayed(0, batch(0, ts=float("nan")), 0.0)
    assert rig.counted("restarts") == 0


# Healing and trust.


def test_a_clear_heals() -> None:
    rig = Rig().up()
    rig.hear(7)
    rig.replay_failed(NO_ENDPOINT, 0.0)
    assert rig.stream.trust is TrustState.DEGRADED
    rig.live(8, batch(8, events=(AllBlocksCleared(), BlockRemoved(block_hashes=(1,)))), 0.0)
    assert rig.stream.trust is TrustState.LIVE


def test_an_event_that_could_not_be_read_degrades() -> None:
    rig = Rig().synced(1)
    rejected = (RejectedEvent(position=1, reason="token_count", detail="..."),)
    rig.live(1, batch(1, events=(AllBlocksCleared(),), rejected=rejected), 0.0)
    assert rig.stream.trust is TrustState.DEGRADED
    assert rig.reason == "events of batch 1 could not be read: token_count"


def test_what_could_not_be_applied_degrades() -> None:
    rig = Rig().synced(1)
    rig.tainted("a bug", 0.0)
    assert (rig.stream.trust, rig.reason) == (TrustState.DEGRADED, "a bug")


def test_no_retry_where_there_is_no_replay() -> None:
    rig = Rig().up()
    rig.hear(7)
    rig.replay_failed(NO_ENDPOINT, 0.0)
    rig.tick(1000.0)
    assert rig.asked() == [0]


def test_retries_are_staggered() -> None:
    stream = Stream(EventsConfig(reconnect_backoff_s=1.0), stagger=0.5)
    stream.connected(0.0)
    stream.replay_failed("timeout", 0.0)
    assert stream.tick(1.4) == []
    assert Replay(0) in stream.tick(1.5)


def test_garbage_without_a_number_is_counted_and_changes_nothing() -> None:
    rig = Rig().synced(3)
    rig.undecodable(None, "bad_seq", 0.0)
    assert rig.done == [Count("undecodable")]


def test_replies_that_nobody_asked_for_are_ignored() -> None:
    rig = Rig().synced(3)
    rig.reply([0, 9])
    rig.replay_failed("timeout", 0.0)
    assert rig.done == []


def test_dead_is_dead() -> None:
    rig = Rig().up()
    assert rig.retire() == [EndReplay()]
    rig.done.clear()
    rig.hear(0)
    rig.reply([0])
    rig.up()
    rig.disconnected(0.0)
    rig.restarted(0.0)
    rig.tick(1e9)
    rig.retire()
    assert rig.done == []
    assert rig.stream.state is State.DEAD


# The table.


def test_every_state_is_reached_and_left_as_the_table_says() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {target for moves in TRANSITIONS.values() for target in moves.values()}
    assert reached == set(State)
    assert {cause for moves in TRANSITIONS.values() for cause in moves} == set(Cause)
    for state, moves in TRANSITIONS.items():
        assert (Cause.RETIRED in moves) == (state is not State.DEAD)
