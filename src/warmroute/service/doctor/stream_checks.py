"""Checks of one rank's event stream: can it be reached, is it what it should be, was it understood.

The first thing that is wrong with a publisher hides all behind it, so what follows from it is not reported as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from warmroute.service.doctor.catalogue import Finding, finding, ok
from warmroute.service.doctor.facts import EngineReport, FollowedFacts, Listening, PeerFacts, StreamFacts
from warmroute.service.doctor.launch import engine_entry, port_of, with_arguments, with_events
from warmroute.service.ports import EventAddress
from warmroute.types import TrustState

BUFFER_STEPS_MIN = 100_000
"""What is recommended where the default of 10,000 batches was too few."""

_HOW = {
    Listening.REFUSED: "nobody listens at",
    Listening.SILENT: "nothing comes back from",
    Listening.UNRESOLVED: "no such host:",
    Listening.FOREIGN: "not a ZMQ socket:",
}


def published_nowhere(engine: EngineReport) -> Finding | None:
    """The finding that this engine publishes no events at all, if it says so or nothing listens anywhere."""
    sources = engine.http.sources
    if sources is not None and not any(source.enabled and source.publisher != "null" for source in sources.values()):
        why = "it says that it publishes nothing"
        if any(source.publisher == "null" for source in sources.values()):
            why += ' (its publisher is "null")'
        elif any(not source.enabled for source in sources.values()):
            why += " (it has a publisher, but enable_kv_cache_events is not set)"
        return finding("events_off", why, with_events(engine))
    peers = [peer for stream in engine.streams for peer in (stream.publisher, stream.replay) if peer]
    if sources is None and peers and all(peer.listening is Listening.REFUSED for peer in peers):
        where = " and ".join(sorted({peer.address for peer in peers}))
        remedy = f"{with_events(engine)}\n{_elsewhere(engine, 'tcp://HOST:PORT')}   (if it publishes elsewhere)"
        return finding("events_off", f"nobody listens at {where}", remedy)
    return None


def ranks(engine: EngineReport) -> Iterator[Finding]:
    """Whether every data-parallel rank is followed."""
    followed, has = len(engine.streams), engine.http.ranks
    if has is not None and followed < has:
        remedy = engine_entry(engine, data_parallel_size=has)
        yield finding("ranks_unfollowed", f"it has {has} ranks, {followed} is followed", remedy)
    elif followed > 1:
        yield ok("ranks", f"{followed} data-parallel ranks, each followed")


def check_stream(engine: EngineReport, stream: StreamFacts) -> Iterator[Finding]:
    """Everything that can be said of one rank."""
    bad = _publisher(engine, stream)
    if bad is not None:
        yield bad
        return
    yield from _replay(engine, stream)
    if stream.followed is not None:
        yield from _followed(engine, stream, stream.followed)
    if stream.trial is not None:
        yield from _trial(engine, stream)


def _publisher(engine: EngineReport, stream: StreamFacts) -> Finding | None:
    """What keeps this rank from being subscribed to; None if nothing does."""
    peer = stream.publisher
    if stream.address is None:
        return _no_address(engine, stream)
    if peer is None:
        return finding("address_bad", f"rank {stream.rank} at {stream.address.endpoint}")
    if peer.listening is not Listening.OPEN:
        return _unreachable(engine, stream, stream.address, peer)
    if peer.publishes:
        return None
    code = "events_is_replay" if peer.replays else "events_not_zmq"
    return finding(code, f"a {peer.socket_type} socket answers at {peer.address}", _mend_ports(engine, stream))


def _unreachable(engine: EngineReport, stream: StreamFacts, address: EventAddress, peer: PeerFacts) -> Finding:
    """Why there is no publisher at the address: the surest explanation first."""
    said = (engine.http.sources or {}).get(stream.rank)
    found = f"rank {stream.rank}: {_seen(peer)}"
    if said is not None and port_of(said.endpoint) not in (None, port_of(address.endpoint)):
        what = f"looked for at {address.endpoint}, but it says {said.endpoint}"
        return finding("events_elsewhere", what, _elsewhere(engine, _at_host(engine, said.endpoint)))
    if said is not None and said.endpoint is not None and not _binds(said.endpoint):
        return finding("publisher_connects", f"{found}; its endpoint is {said.endpoint}", with_events(engine))
    if said is None and peer.listening is Listening.REFUSED and stream.replay and stream.replay.replays:
        what = f"{found}, while its replay socket is there"
        return finding("publisher_connects", what, with_events(engine))
    if peer.listening is Listening.FOREIGN:
        return finding("events_not_zmq", found)
    return finding("events_unreachable", found, _elsewhere(engine, "tcp://HOST:PORT"))


def _no_address(engine: EngineReport, stream: StreamFacts) -> Finding:
    said = (engine.http.sources or {}).get(stream.rank)
    if said is None or said.endpoint is None:
        return finding("events_off", f"rank {stream.rank} says nothing of a publisher", with_events(engine))
    return finding("publisher_loopback", f"rank {stream.rank} publishes at {said.endpoint}", with_events(engine))


def _replay(engine: EngineReport, stream: StreamFacts) -> Iterator[Finding]:
    peer, followed = stream.replay, stream.followed
    said = (engine.http.sources or {}).get(stream.rank)
    if peer is None:
        yield finding("replay_missing", f"rank {stream.rank} has no replay socket", with_events(engine))
    elif peer.publishes:
        yield finding("replay_is_publisher", f"a publisher answers at {peer.address}", with_events(engine))
    elif not peer.replays:
        none = said is None and peer.listening is Listening.REFUSED
        code = "replay_missing" if none else "replay_unreachable"
        yield finding(code, f"rank {stream.rank}: {_seen(peer)}", with_events(engine) if none else None)
    elif followed is not None and not followed.replay_ended:
        yield finding("replay_silent", f"{peer.address} gave no complete answer")
    elif followed is not None and followed.first_seq:
        steps = max(BUFFER_STEPS_MIN, 2 * ((said.buffer_steps if said else None) or 0))
        found = f"the oldest batch it still has is number {followed.first_seq}"
        yield finding("replay_truncated", found, with_events(engine, buffer_steps=steps))
    else:
        kept = f", {followed.batches} batches" if followed else ""
        yield ok("replay", f"rank {stream.rank} at {peer.address}{kept}")


def _followed(engine: EngineReport, stream: StreamFacts, followed: FollowedFacts) -> Iterator[Finding]:
    where = f"rank {stream.rank}"
    troubles = list(_troubles(engine, stream, followed))
    yield from troubles
    trust = f"{followed.trust.state}: {followed.trust.reason}"
    truncated = bool(followed.first_seq) or not followed.replay_ended  # told of by the replay's own check
    if followed.trust.state is TrustState.LIVE and not troubles:
        yield ok("events", f"{where} at {stream.publisher.address if stream.publisher else '?'}, {trust}")
    elif not troubles and not truncated:
        yield finding("stream_degraded", f"{where} is {trust}")


def _troubles(engine: EngineReport, stream: StreamFacts, followed: FollowedFacts) -> Iterator[Finding]:
    where = f"rank {stream.rank}"
    said = (engine.http.sources or {}).get(stream.rank)
    wanted = stream.address.topic if stream.address else ""
    topics = followed.topics | ({said.topic} if said else set())
    if topics and not any(topic.startswith(wanted) for topic in topics):
        shown = ", ".join(repr(topic) for topic in sorted(topics))
        yield finding("topic_mismatch", f"{wanted!r} is subscribed to, {shown} is published", "Leave out `topic`.")
    if followed.rejected:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(followed.rejected.items()))
        yield finding("undecodable", f"{where}: {counts}")
    if followed.unknown_media:
        yield finding("medium_unknown", f"{where}: {followed.unknown_media} events")
    if followed.rank_mismatches:
        yield finding("rank_mismatch", f"{where}: {followed.rank_mismatches} batches are another rank's")


def _trial(engine: EngineReport, stream: StreamFacts) -> Iterator[Finding]:
    trial, where = stream.trial, f"rank {stream.rank}"
    if trial is None:
        return
    if trial.problem is not None:
        yield finding("trial_failed", f"{where}: {trial.problem}")
    elif not trial.batches:
        yield finding("trial_silent", f"{where}: {trial.prompt_tokens} prompt tokens, no event")
    elif trial.reported_tokens is None:
        remedy = with_arguments(engine, vllm="--enable-prompt-tokens-details", sglang="--enable-cache-report")
        yield finding("cached_tokens_hidden", f"{where}: {trial.predicted_tokens} tokens were predicted", remedy)
    elif trial.reported_tokens != trial.predicted_tokens:
        found = f"{trial.predicted_tokens} cached tokens predicted, {trial.reported_tokens} reported"
        yield finding("trial_differs", f"{where}: {found}")
    else:
        yield ok("trial", f"{where}: {trial.reported_tokens} cached tokens predicted and reported")


def _binds(endpoint: str) -> bool:
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def _seen(peer: PeerFacts) -> str:
    return f"{_HOW.get(peer.listening, 'an odd socket at')} {peer.address}{f' ({peer.detail})' if peer.detail else ''}"


def _at_host(engine: EngineReport, endpoint: str | None) -> str:
    host = f"[{engine.endpoint.host}]" if ":" in engine.endpoint.host else engine.endpoint.host
    return f"tcp://{host}:{port_of(endpoint)}"


def _elsewhere(engine: EngineReport, address: str) -> str:
    return engine_entry(engine, events_endpoint=address)


def _mend_ports(engine: EngineReport, stream: StreamFacts) -> str:
    """Swapped in our configuration, if the other address is the publisher; else the engine's ports are too close."""
    if stream.replay and stream.replay.publishes and stream.publisher:
        entry = {"events_endpoint": stream.replay.address, "replay_endpoint": stream.publisher.address}
        return engine_entry(engine, **entry)
    return with_events(engine)
