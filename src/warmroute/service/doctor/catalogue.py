"""Everything the doctor can find, by code: how bad it is, what it means, what mends it.

docs/doctor.md is this table; a test holds the two together, and another that every code is raised by some check.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad a finding is, from the best to the worst."""

    OK = "ok"
    WARNING = "warning"
    """Requests are served and routed, with less knowledge than there could be."""
    FAULT = "fault"
    """Requests cannot be sent there, or are routed to this engine without knowing its cache."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be wrong."""

    severity: Severity
    meaning: str
    remedy: str
    """What mends it, in general; a finding has the very arguments."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check."""

    code: str
    """A code of the catalogue, or for what is well the name of what was checked."""
    severity: Severity
    found: str
    """What was seen, as a clause."""
    meaning: str = ""
    remedy: str = ""
    """What to do; where it is a command line or a setting, exactly that."""


def ok(checked: str, found: str) -> Finding:
    """Nothing is wrong with what was checked."""
    return Finding(checked, Severity.OK, found)


def finding(code: str, found: str, remedy: str | None = None) -> Finding:
    """A finding of the catalogue; `remedy` where there is more to say than in general."""
    entry = CATALOGUE[code]
    return Finding(code, entry.severity, found, entry.meaning, entry.remedy if remedy is None else remedy)


_W, _F = Severity.WARNING, Severity.FAULT
_EVENTS = "`--kv-events-config` with an endpoint that has a `*` in it"

CATALOGUE: dict[str, Entry] = {
    # HTTP.
    "unreachable": Entry(
        _F,
        "No request can be sent to this engine. Engines that end at start often do because of flags that no release "
        "has (`--enable-kv-cache-events`, `--kv-events-publisher`), or because the replay port is a data-parallel "
        "rank's event port.",
        "Look at the engine's log; check host, port and network policy.",
    ),
    "not_ready": Entry(
        _F, "The engine is starting, overloaded or broken; until it is ready it gets no requests.", "Look at its log."
    ),
    "no_engine": Entry(
        _F, "Something answers there that is not an engine's API.", "Give the engine's base URL, without a path."
    ),
    "api_key": Entry(
        _F,
        "The engine asks for an API key, and Warmroute has none or another one: it is never found ready.",
        "Give its key: `engines[].api_key_file`, or `membership.api_key_file` for all; `doctor` takes them, too.",
    ),
    "no_model": Entry(_F, "It serves no model, so no request goes there.", "Start it with a model."),
    # Release.
    "version_unknown": Entry(
        _W, "The engine does not say which release it is; its events are read by what they look like.", "Nothing to do."
    ),
    "version_untried": Entry(
        _W,
        "This release is newer than those that were tried. Unknown fields are ignored, unknown events counted.",
        "Run `warmroute doctor --send-request`, which compares prediction and report.",
    ),
    "version_too_old": Entry(
        _F, "The release publishes no KV cache events: it is routed to by load.", "Upgrade to vLLM 0.9 or SGLang 0.4.7."
    ),
    "lora_unnamed": Entry(
        _W,
        "Before 0.14 adapters are published by a running number, which says nothing to a gateway: requests for "
        "adapters are routed by load.",
        "Upgrade to vLLM 0.14 or later.",
    ),
    "hashes_unencodable": Entry(
        _F,
        "Before 0.10.2 sha256 hashes are numbers too large for the event format: a batch that stores is lost.",
        "`--prefix-caching-hash-algo builtin`, or upgrade to 0.10.2.",
    ),
    "keys_unpublished": Entry(
        _W,
        "Before 0.17 blocks of salted and multimodal prompts are published like those of plain text: a request with "
        "the same text may be predicted as cached where it is not.",
        "Upgrade to vLLM 0.17 or later.",
    ),
    "hashes_unchained": Entry(
        _W,
        "Before 0.5.6 a page's hash says nothing of what stands before it, so equal pages behind different beginnings "
        "are taken for one: predictions can be wrong either way.",
        "Upgrade to SGLang 0.5.6 or later.",
    ),
    # Cache.
    "prefix_caching_off": Entry(
        _F, "The engine caches no prefixes: nothing can be warm there.", "vLLM: `--enable-prefix-caching`."
    ),
    "block_size_one": Entry(
        _W,
        "Every token is a block of its own: events and index are an order of magnitude larger than need be.",
        "SGLang: `--page-size 16` or more.",
    ),
    "block_size_differs": Entry(
        _W,
        "Events are cut into other blocks than the engine announces (context parallelism and hybrid models do that). "
        "Warmroute goes by the events.",
        "Nothing to do, unless a proxy serves another engine's metrics here.",
    ),
    "clock_skew": Entry(
        _W,
        "Routing does not depend on it; `warmroute_event_lag_seconds` is wrong by the difference.",
        "Synchronise the clocks (NTP).",
    ),
    # Events.
    "not_followed": Entry(
        _W, "Warmroute was told not to follow this engine's events: it is routed to by load.", "Set `events: true`."
    ),
    "events_off": Entry(
        _F, "The engine publishes nothing: it is routed to by load.", f"{_EVENTS}, `publisher` and the enabling key."
    ),
    "publisher_connects": Entry(
        _F,
        "The engine's PUB socket binds only if its endpoint has `*` or `::` in it; otherwise (`tcp://0.0.0.0:5557`) it "
        "connects to that address, and nobody can subscribe.",
        f"{_EVENTS}.",
    ),
    "publisher_loopback": Entry(
        _F, "The engine publishes on its own machine's loopback, which cannot be reached from here.", f"{_EVENTS}."
    ),
    "events_elsewhere": Entry(
        _F,
        "Events are looked for at another port than the engine says it publishes on.",
        "Correct or leave out `events_endpoint` (or `events.port`).",
    ),
    "events_unreachable": Entry(
        _F,
        "The event port cannot be reached from here, so the engine is routed to by load. Firewalls, network policies "
        "and Kubernetes Services that do not list the port drop packets silently; port mappings move it.",
        "Open the port, or set `events_endpoint` to where it can be reached.",
    ),
    "events_not_zmq": Entry(
        _F, "Something else than a ZMQ socket answers at the event port.", "Correct `events_endpoint`."
    ),
    "events_is_replay": Entry(
        _F,
        "The address that events are expected at is a replay socket: the two are swapped, or another rank's or "
        "engine's replay port lies there.",
        "Correct `events_endpoint` and `replay_endpoint`, or give the engine ports that lie apart.",
    ),
    "address_bad": Entry(_F, "Nobody can connect to this address.", "Write tcp://HOST:PORT."),
    "publisher_shared": Entry(
        _F,
        "Two engines seem to publish at one address: one engine's cache would be credited to the other.",
        "Give each engine its own `events_endpoint`.",
    ),
    "ranks_unfollowed": Entry(
        _F,
        "The engine has more data-parallel ranks than are followed; each is a cache of its own.",
        "Set `data_parallel_size`.",
    ),
    "rank_mismatch": Entry(
        _F,
        "Batches name another data-parallel rank than the port they came on stands for: requests would be pinned to "
        "the wrong rank.",
        "Correct `events_endpoint`: it is rank 0's address, rank r is at port + r.",
    ),
    "topic_mismatch": Entry(
        _F, "The topic that is subscribed to matches nothing of what is published.", "Correct or leave out `topic`."
    ),
    "undecodable": Entry(
        _F,
        "Some of what the engine publishes could not be read; each such event is left out and the worker is DEGRADED.",
        "Report it with the engine's version; `warmroute replay --events` shows recorded events.",
    ),
    "medium_unknown": Entry(
        _W,
        "Blocks lie on a medium that Warmroute does not know; they are credited as STORAGE, the least there is.",
        "Report it with the engine's version.",
    ),
    "stream_degraded": Entry(
        _W, "The gateway's own code does not come to believe this stream.", "Mend the other findings first."
    ),
    # Replay.
    "replay_missing": Entry(
        _W,
        "Without a replay socket a batch that is lost, and everything published before the gateway came, stays unknown "
        "until the cache turns over.",
        "Give `--kv-events-config` a `replay_endpoint`.",
    ),
    "replay_unreachable": Entry(
        _W, "The replay port cannot be reached: as if there were none.", "Open the port, or correct `replay_endpoint`."
    ),
    "replay_is_publisher": Entry(
        _F,
        "A publisher sits at the replay address: rank r is at port + r, so the usual pair 5557 and 5558 collides as "
        "soon as there are two ranks.",
        "Give the engine a replay port at least as far from the event port as there are ranks.",
    ),
    "replay_silent": Entry(
        _W,
        "The replay socket accepts questions and gives no complete answer: gaps stay open.",
        "Raise `events.replay_timeout_s`, or look at the engine: its publishing thread answers between batches.",
    ),
    "replay_truncated": Entry(
        _W,
        "The oldest batches are not kept any more: a gateway that starts now does not learn of blocks stored before.",
        "A larger `buffer_steps`.",
    ),
    # Tokens.
    "tokenize_missing": Entry(
        _W,
        "The engine does not say how it tokenizes (`/tokenize`), so requests with text are routed by load unless "
        "there is a tokenizer in process.",
        "Set `tokenizer.path` to the folder with the model's tokenizer.json and chat template.",
    ),
    "tokenizer_differs": Entry(
        _F,
        "The tokenizer in process makes other token ids than the engine: predictions would be wrong, so the gateway "
        "switches it off.",
        "Put the engine's own tokenizer.json and chat template into `tokenizer.path`.",
    ),
    "tokenizers_disagree": Entry(
        _F,
        "Engines that serve the same model turn the same text into different token ids; only one of them is asked.",
        "Start all with the same model revision and `--chat-template`.",
    ),
    # The trial.
    "trial_failed": Entry(_W, "The trial could not be made.", "Look at the engine's answer."),
    "trial_silent": Entry(
        _F,
        "A prompt of several blocks was computed and no event came.",
        "Check that the address is this engine's, and that it caches prefixes.",
    ),
    "trial_differs": Entry(
        _F,
        "What was predicted is not what the engine found in its cache. On an engine with traffic of its own, evictions "
        "in between can do that; try again.",
        "Report it with the engine's version.",
    ),
    "cached_tokens_hidden": Entry(
        _W,
        "The engine does not report how many prompt tokens it found in its cache, so predictions cannot be judged.",
        "vLLM: `--enable-prompt-tokens-details`; SGLang: `--enable-cache-report`.",
    ),
}
