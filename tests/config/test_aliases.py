"""The other system's names, both generations."""

from __future__ import annotations

import itertools

import pytest

from warmroute.config import Config, Loaded, load
from warmroute.config.leaves import LEAVES
from warmroute.errors import ConfigError

SYNC = ("AIBRIX_KV_EVENT_SYNC_ENABLED", "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED")
REMOTE = ("AIBRIX_USE_REMOTE_TOKENIZER", "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER")
ENDPOINT = ("AIBRIX_REMOTE_TOKENIZER_ENDPOINT", "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT")
METRICS = ("AIBRIX_PREFIX_CACHE_METRICS_ENABLED", "AIBRIX_PREFIX_CACHE_LOCAL_ROUTER_METRICS_ENABLED")
TYPE = "AIBRIX_PREFIX_CACHE_TOKENIZER_TYPE"
NEEDS_TOKENS = "events.enabled: true (alias {}) needs the prompts' token ids, but tokenizer.mode is off ({})."


def env(**variables: str) -> Loaded:
    return load(flags={}, environ=variables)


def refused(**variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        env(**variables)
    return str(caught.value)


@pytest.mark.parametrize("generation", [0, 1])
def test_d12_all_set(generation: int) -> None:
    loaded = env(
        **{SYNC[generation]: "true", REMOTE[generation]: "true", ENDPOINT[generation]: "http://vllm-service:8000"}
    )
    assert loaded.config.events.enabled
    assert loaded.config.tokenizer.mode == "remote"
    assert loaded.config.tokenizer.remote_endpoint == "http://vllm-service:8000"
    understood = [
        (SYNC, "true", "events.enabled", "true"),
        (REMOTE, "true", "tokenizer.mode", "remote"),
        (ENDPOINT, "http://vllm-service:8000", "tokenizer.remote_endpoint", "http://vllm-service:8000"),
    ]
    assert list(loaded.notes) == [
        f"{names[generation]} = {text} is understood as {key} = {value} (set {LEAVES[key].variable}={value} instead)"
        for names, text, key, value in understood
    ]
    assert str(loaded.sources["events.enabled"]) == f"alias {SYNC[generation]}"


@pytest.mark.parametrize("generation", [0, 1])
@pytest.mark.parametrize("remote", ["true", "false", None])
def test_d12_sync_off(generation: int, remote: str | None) -> None:
    given = {SYNC[generation]: "false"} | ({REMOTE[generation]: remote} if remote else {})
    assert env(**given).config.events.enabled is False


@pytest.mark.parametrize(("sync", "remote"), list(itertools.product(SYNC, REMOTE)))
def test_d12_sync_on_with_the_tokenizer_off(sync: str, remote: str) -> None:
    message = refused(**{sync: "true", remote: "false"})
    assert message.startswith(NEEDS_TOKENS.format(sync, f"alias {remote}"))
    assert "Set tokenizer.mode to auto, remote or local (WARMROUTE_TOKENIZER_MODE=auto;" in message
    assert "AIBRIX_USE_REMOTE_TOKENIZER=true), or events.enabled to false." in message


def test_d12_sync_on_with_our_own_name_for_off() -> None:
    told = refused(**{SYNC[0]: "1", "WARMROUTE_TOKENIZER_MODE": "off"})
    assert told.startswith(NEEDS_TOKENS.format(SYNC[0], "environment WARMROUTE_TOKENIZER_MODE"))


def test_d12_tokenizer_off_alone_is_for_clients_that_send_token_ids() -> None:
    config = env(**{REMOTE[0]: "false"}).config
    assert (config.events.enabled, config.tokenizer.mode) == (True, "off")


@pytest.mark.parametrize("names", [SYNC, REMOTE])
@pytest.mark.parametrize(("one", "other"), [("true", "1"), ("F", "false"), ("TRUE", "t")])
def test_both_generations_may_agree(names: tuple[str, str], one: str, other: str) -> None:
    loaded = env(**{names[0]: one, names[1]: other})
    assert [note.partition(" = ")[0] for note in loaded.notes] == list(names)
    assert f"alias {names[0]} and {names[1]}" in {str(source) for source in loaded.sources.values()}


@pytest.mark.parametrize(
    ("names", "key", "values"),
    [
        (SYNC, "events.enabled", ("true", "false")),
        (REMOTE, "tokenizer.mode", ("0", "T")),
        (ENDPOINT, "tokenizer.remote_endpoint", ("http://a:1", "http://b:1")),
        ((REMOTE[0], TYPE), "tokenizer.mode", ("true", "local")),
        ((REMOTE[1], TYPE), "tokenizer.mode", ("false", "remote")),
    ],
)
def test_contradicting_names_are_refused(names: tuple[str, str], key: str, values: tuple[str, str]) -> None:
    message = refused(**dict(zip(names, values, strict=True)))
    assert message == (
        f"{key}: {names[0]} = {values[0]} contradicts {names[1]} = {values[1]}. Keep the one that is meant."
    )


def test_a_contradiction_shows_no_password() -> None:
    message = refused(**dict(zip(ENDPOINT, ("http://a:1", "http://me:secret@a:1"), strict=True)))
    assert "http://...@a:1" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({TYPE: "remote"}, "remote"),
        ({TYPE: "Remote", REMOTE[0]: "true"}, "remote"),
        ({TYPE: "character"}, "off"),
        ({TYPE: "tiktoken", REMOTE[0]: "false"}, "off"),
        ({TYPE: "local", REMOTE[0]: "false", "WARMROUTE_TOKENIZER_PATH": "/m"}, "local"),
        ({TYPE: ""}, "auto"),
    ],
)
def test_tokenizer_types(given: dict[str, str], mode: str) -> None:
    assert env(**given).config.tokenizer.mode == mode


def test_local_still_needs_a_path() -> None:
    assert refused(**{TYPE: "local"}).startswith(f"tokenizer.path: none, but tokenizer.mode is local (alias {TYPE}).")


@pytest.mark.parametrize("name", [*SYNC, *REMOTE, TYPE])
def test_values_that_mean_nothing(name: str) -> None:
    assert refused(**{name: "perhaps"}).startswith(f"{name}: 'perhaps' is not a value it has. It takes ")


def test_a_bad_endpoint_names_the_alias() -> None:
    assert refused(**{ENDPOINT[0]: "vllm"}).startswith(
        f"tokenizer.remote_endpoint: 'vllm' (alias {ENDPOINT[0]}) is no http:// or https:// URL."
    )


def test_our_own_name_is_stronger_and_a_note_says_so() -> None:
    loaded = env(**{SYNC[0]: "true", "WARMROUTE_EVENTS_ENABLED": "false"})
    assert not loaded.config.events.enabled
    assert loaded.notes == (f"{SYNC[0]} = true has no effect: WARMROUTE_EVENTS_ENABLED is given",)
    loaded = load(flags={"events.enabled": "false"}, environ={SYNC[0]: "true"})
    assert loaded.notes == (f"{SYNC[0]} = true has no effect: --events.enabled is given",)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", ["true", "false"])
def test_metrics_are_always_on(name: str, value: str) -> None:
    loaded = env(**{name: value})
    assert loaded.config == Config()
    assert loaded.notes == (f"{name} = {value} has no effect: Warmroute's metrics are always on",)


def test_other_variables_of_the_other_system_are_named() -> None:
    loaded = env(AIBRIX_B="1", AIBRIX_A="2", AIBRIX_REMOTE_TOKENIZER_ENGINE="vllm")
    assert loaded.config == Config()
    assert loaded.notes == (
        "AIBRIX_REMOTE_TOKENIZER_ENGINE = vllm has no effect: Warmroute learns from an engine what it is",
        "AIBRIX_A, AIBRIX_B: no counterpart in Warmroute, no effect",
    )
