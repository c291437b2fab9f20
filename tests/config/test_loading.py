"""Precedence, provenance, and everything that one source or one value can have wrong."""

from __future__ import annotations

import functools
import itertools
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config import Config, EngineConfig, JointConfigError, load
from warmroute.config.leaves import ENGINE_LEAVES, LEAVES
from warmroute.errors import ConfigError

ENGINE = "http://a:8000"


def file(document: object, **sources: Any) -> Any:
    return load(
        flags=sources.get("flags", {}), environ=sources.get("environ", {}), document=document, file_name="w.yaml"
    )


def refused(document: object = None, **sources: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        file(document, **sources)
    return str(caught.value)


# One value per source: whichever sources are present, the strongest decides.
SOURCES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "flag --events.enabled": ("flags", {"events.enabled": "true"}, True),
    "environment WARMROUTE_EVENTS_ENABLED": ("environ", {"WARMROUTE_EVENTS_ENABLED": "false"}, False),
    "alias AIBRIX_KV_EVENT_SYNC_ENABLED": ("environ", {"AIBRIX_KV_EVENT_SYNC_ENABLED": "true"}, True),
    "file w.yaml": ("document", {"events": {"enabled": False}}, False),
}


@pytest.mark.parametrize("present", list(itertools.product([True, False], repeat=len(SOURCES))))
def test_the_strongest_source_decides(present: tuple[bool, ...]) -> None:
    here = [name for name, is_here in zip(SOURCES, present, strict=True) if is_here]
    sources: dict[str, dict[str, Any]] = {"flags": {}, "environ": {}, "document": {}}
    for name in here:
        kind, content, _ = SOURCES[name]
        sources[kind] |= content
    loaded = file(sources["document"], flags=sources["flags"], environ=sources["environ"])
    strongest = here[0] if here else "default"
    assert str(loaded.sources["events.enabled"]) == strongest
    assert loaded.config.events.enabled is (SOURCES[strongest][2] if here else True)


def test_every_leaf_has_a_source() -> None:
    loaded = file({"gateway": {"port": 1}})
    assert list(loaded.sources) == list(LEAVES)
    said = {key: str(source) for key, source in loaded.sources.items() if str(source) != "default"}
    assert said == {"gateway.port": "file w.yaml"}
    assert str(load(flags={}, environ={}, document={"log": {"level": "debug"}}).sources["log.level"]) == (
        "file configuration file"
    )


def test_each_kind_of_value_from_text() -> None:
    flags = {
        "gateway.port": "0",
        "gateway.decision_headers": "FALSE",
        "events.replay_port": "null",
        "tokenizer.mode": "local",
        "tokenizer.path": "/models/a b",
        "tokenizer.timeout_s": "1e-1",
        "routing.decode_weight": "2",
    }
    config = load(flags=flags, environ={}).config
    assert (config.gateway.port, config.gateway.decision_headers, config.events.replay_port) == (0, False, None)
    assert (config.tokenizer.mode, config.tokenizer.path, config.tokenizer.timeout_s) == ("local", "/models/a b", 0.1)
    assert repr(config.routing.decode_weight) == "2.0"


def test_every_leaf_can_be_set_in_every_source() -> None:
    same = {key: leaf.default for key, leaf in LEAVES.items() if leaf.default is not None and key != "engines"}
    texts = {key: str(value) for key, value in same.items()}
    sections: dict[str, Any] = {}
    for key, value in same.items():
        *path, name = key.split(".")
        functools.reduce(lambda section, part: section.setdefault(part, {}), path, sections)[name] = value
    for loaded, origin in (
        (load(flags=texts, environ={}), "flag"),
        (load(flags={}, environ={LEAVES[key].variable: text for key, text in texts.items()}), "environment"),
        (file(sections), "file"),
    ):
        assert loaded.config == Config()
        assert {loaded.sources[key].origin for key in same} == {origin}


def test_engines_from_every_source() -> None:
    both = (EngineConfig(url="http://a:1"), EngineConfig(url="http://b:2"))
    assert load(flags={"engines": ("http://a:1", "http://b:2")}, environ={}).config.engines == both
    assert load(flags={}, environ={"WARMROUTE_ENGINES": "http://a:1, http://b:2"}).config.engines == both
    assert file({"engines": ["http://a:1", {"url": "http://b:2"}]}).config.engines == both


def test_a_stronger_list_of_engines_replaces_a_weaker_one() -> None:
    loaded = file({"engines": ["http://a:1"]}, flags={"engines": ("http://b:2",)})
    assert [engine.url for engine in loaded.config.engines] == ["http://b:2"]
    assert str(loaded.sources["engines"]) == "flag --engine"


def test_an_engine_in_full() -> None:
    whole = {
        "url": "https://[::1]:8000/",
        "events_endpoint": "tcp://[::1]:5557",
        "replay_endpoint": "tcp://[::1]:5567",
        "topic": "kv",
        "data_parallel_size": 2,
        "events": False,
        "weight": 0.5,
        "api_key": "secret",
        "api_key_file": None,
    }
    assert {*whole, "events_listen"} == ENGINE_LEAVES.keys(), "events_listen would contradict events_endpoint"
    assert file({"engines": [whole]}).config.engines == (EngineConfig(**whole),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        (None, "engines: null (file w.yaml) is no list. Give a list of URLs, or of mappings with a url."),
        ("http://a:1", "engines: 'http://a:1' (file w.yaml) is no list."),
        ({"url": "http://a:1"}, "engines: a mapping (file w.yaml) is no list."),
        ([5], "engines[0]: 5 (file w.yaml) is no engine. Give a URL, or a mapping with a url."),
        ([{}], "engines[0].url: missing (file w.yaml). Give a URL http://HOST:PORT"),
        ([{"url": None}], "engines[0].url: null (file w.yaml) is not text."),
        (
            [ENGINE, {"ulr": "x", "url": ENGINE}],
            "engines[1].ulr: unknown setting (file w.yaml). Did you mean engines[1].url?",
        ),
        (
            [{"url": ENGINE, "topic": 7}],
            "engines[0].topic: 7 (file w.yaml) is not text. Give printable text of at most 255",
        ),
        ([{"url": ENGINE, "topic": "a\nb"}], "has unprintable characters"),
        ([{"url": ENGINE, "topic": "é" * 128}], "is too long"),
        ([{"url": ENGINE, "data_parallel_size": 0}], "engines[0].data_parallel_size: 0 (file w.yaml) is out of range."),
        ([{"url": ENGINE, "events": "yes"}], "engines[0].events: 'yes' (file w.yaml) is neither true nor false."),
    ],
)
def test_engines_refused(engines: object, message: str) -> None:
    assert message in refused({"engines": engines})


@pytest.mark.parametrize("text", ["", ",", "http://a:1,"])
def test_an_empty_engine_in_the_environment(text: str) -> None:
    assert "].url: empty (environment WARMROUTE_ENGINES). Unset it, or" in refused(environ={"WARMROUTE_ENGINES": text})


@pytest.mark.parametrize("port", ["65536", "-1", "1e9"])
@pytest.mark.parametrize("key", ["gateway.port", "events.port", "events.replay_port"])
def test_c12_ports_out_of_range(key: str, port: str) -> None:
    assert f"{key}: '{port}' (flag --{key}) is out of range." in refused(flags={key: port})


def test_c12_port_zero() -> None:
    assert load(flags={"gateway.port": "0"}, environ={}).config.gateway.port == 0, "the system chooses"
    assert "events.port: 0 (file w.yaml) is out of range. Give an integer from 1 to 65535." in refused(
        {"events": {"port": 0}}
    )
    assert "events.replay_port: 0 (file w.yaml) is out of range" in refused({"events": {"replay_port": 0}})
    assert "has a port that is not from 1 to 65535" in refused({"engines": ["http://a:0"]})


@pytest.mark.parametrize("host", ["not-an-ip", "10.0.0.256", "10.0.0", "::g"])
def test_c12_no_ip_to_listen_on(host: str) -> None:
    assert f"gateway.host: '{host}' (flag --gateway.host) is no IP address." in refused(flags={"gateway.host": host})


def test_c12_empty_ip() -> None:
    assert "gateway.host: empty (flag --gateway.host)" in refused(flags={"gateway.host": ""})
    assert "gateway.host: '' (file w.yaml) is no IP address" in refused({"gateway": {"host": ""}})
    assert "has no host" in refused({"engines": ["http://:8000"]})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "10.1.2.3"])
def test_hosts_to_listen_on(host: str) -> None:
    assert load(flags={"gateway.host": host}, environ={}).config.gateway.host == host


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("gateway.port", "8o80", "is no integer. Give an integer from 0 to 65535."),
        ("gateway.port", "80.5", "is no integer"),
        ("gateway.port", " 80", "is no integer"),
        ("gateway.port", "null", "is no integer"),
        ("gateway.retries", "-1", "is out of range"),
        ("gateway.max_body_bytes", "0", "is out of range"),
        ("gateway.decision_headers", "yes", "is neither true nor false. Give true or false."),
        ("gateway.head_timeout_s", "0", "is out of range. Give a number above 0 up to 86400."),
        ("gateway.connect_timeout_s", "2s", "is no number"),
        ("gateway.keepalive_timeout_s", "nan", "is not a number"),
        ("gateway.drain_timeout_s", "inf", "is out of range"),
        ("gateway.drain_timeout_s", "-1", "is out of range. Give a number from 0 to 86400."),
        ("events.pending_batches_max", "0", "is out of range"),
        ("tokenizer.mode", "Remote", "is none of them. Give one of auto, remote, local, off."),
        ("tokenizer.path", "a\0b", "is no path"),
        ("tokenizer.remote_endpoint", "vllm:8000", "is no http:// or https:// URL"),
        ("tokenizer.timeout_s", "-0.5", "is out of range"),
        ("routing.policy", "magic", "is no policy. Give one of warmroute, round_robin, random,"),
        ("routing.prefill_tokens_per_s", "0", "is out of range"),
        ("routing.degraded_belief", "1.01", "is out of range. Give a number from 0 to 1."),
        ("log.level", "trace", "is none of them"),
    ],
)
def test_values_refused_as_text(key: str, text: str, problem: str) -> None:
    message = refused(environ={LEAVES[key].variable: text})
    assert message.startswith(f"{key}: {text!r} (environment {LEAVES[key].variable}) {problem}")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("gateway.port", "8080", "'8080' (file w.yaml) is no integer"),
        ("gateway.port", 80.0, "80.0 (file w.yaml) is no integer"),
        ("gateway.port", True, "true (file w.yaml) is no integer"),
        ("gateway.port", None, "null (file w.yaml) is no integer"),
        ("gateway.port", [1], "a list (file w.yaml) is no integer"),
        ("gateway.head_timeout_s", 10**400, "is no number"),
        ("gateway.decision_headers", 1, "1 (file w.yaml) is neither true nor false"),
        ("tokenizer.path", 7, "7 (file w.yaml) is not text. Give the path of a folder, or null, in quotes."),
        ("tokenizer.path", "", "'' (file w.yaml) is no path"),
        ("tokenizer.mode", False, "false (file w.yaml) is none of them"),
        ("log.level", {"a": 1}, "a mapping (file w.yaml) is none of them"),
    ],
)
def test_values_refused_in_the_file(key: str, value: object, problem: str) -> None:
    section, _, name = key.partition(".")
    message = refused({section: {name: value}})
    assert message.startswith(f"{key}: ")
    assert problem in message


def test_an_integer_does_where_a_number_is_wanted() -> None:
    assert file({"gateway": {"head_timeout_s": 3}}).config.gateway.head_timeout_s == 3.0


def test_only_the_value_that_counts_is_checked() -> None:
    assert file({"gateway": {"port": "x"}}, flags={"gateway.port": "1"}).config.gateway.port == 1


def test_errors_show_neither_passwords_nor_novels() -> None:
    message = refused(flags={"engines": ("http://me:secret@a:1",)})
    assert "secret" not in message
    assert "carries a user name or password" in message
    assert len(refused(flags={"gateway.host": "x" * 10_000})) < 300


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "w.yaml: a list is not a mapping of sections. Its sections are engines, gateway, admin, tls, admission,"),
        ("text", "w.yaml: 'text' is not a mapping"),
        ({"gatewy": {}}, "gatewy: unknown setting (file w.yaml). Did you mean gateway? Known here: engines, gateway,"),
        (
            {"events": {"prot": 1}},
            "events.prot: unknown setting (file w.yaml). Did you mean events.port? Known here: enabled,",
        ),
        ({"port": 1}, "port: unknown setting (file w.yaml). Did you mean gateway.port or admin.port or events.port?"),
        ({"gateway": {"mode": 1}}, "gateway.mode: unknown setting (file w.yaml). Did you mean tokenizer.mode?"),
        ({"zzz": 1}, "zzz: unknown setting (file w.yaml). Known here: engines,"),
        ({7: 1}, "7: unknown setting"),
        (
            {"gateway.port": 1},
            "gateway.port: a dotted key at the top (file w.yaml). Write `gateway:` and, indented below it,",
        ),
        ({"gateway": 8080}, "gateway: 8080 (file w.yaml) is not a mapping. Indent its settings below it."),
        ({"gateway": {3: 1}}, "gateway.3: unknown setting"),
    ],
)
def test_documents_refused(document: object, message: str) -> None:
    assert refused(document).startswith(message)


@pytest.mark.parametrize("document", [None, {}, {"gateway": None}])
def test_documents_that_say_nothing(document: object) -> None:
    assert file(document).config == Config()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "WARMROUTE_GATEWAY_PROT",
            "unknown variable (environment). Did you mean WARMROUTE_GATEWAY_PORT? Known: WARMROUTE_GATEWAY_HOST,",
        ),
        ("WARMROUTE_PORT", "Did you mean WARMROUTE_"),
        (
            "WARMROUTE_XXXXXXXXXXXXXXXXX",
            "unknown variable (environment). Known: WARMROUTE_SECTION_SETTING for each setting",
        ),
        ("WARMROUTE_gateway_port", "unknown variable"),
    ],
)
def test_unknown_variables(name: str, message: str) -> None:
    told = refused(environ={name: "1"})
    assert told.startswith(f"{name}: ")
    assert message in told


def test_variables_of_others() -> None:
    environ = {
        "PATH": "/bin",
        "WARMROUTE_CONFIG": "x",
        "WARMROUTE_CACHE": "y",
        "WARMROUTE_REQUIRE_VLLM": "1",
        "WARMROUTEX": "z",
    }
    loaded = load(flags={}, environ=environ)
    assert (loaded.config, loaded.notes) == (Config(), ())


def test_variables_that_kubernetes_makes_of_services() -> None:
    """A Service `warmroute-gateway` puts WARMROUTE_GATEWAY_PORT=tcp://... into every container of its namespace."""
    environ: dict[str, str] = {}
    for service in ("WARMROUTE", "WARMROUTE_GATEWAY", "AIBRIX_REDIS"):
        environ |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "8080",
            f"{service}_SERVICE_PORT_HTTP": "8080",
            f"{service}_PORT": "tcp://10.0.0.1:8080",
            f"{service}_PORT_8080_TCP": "tcp://10.0.0.1:8080",
            f"{service}_PORT_8080_TCP_PROTO": "tcp",
            f"{service}_PORT_8080_TCP_PORT": "8080",
            f"{service}_PORT_8080_TCP_ADDR": "10.0.0.1",
        }
    loaded = load(flags={}, environ=environ)
    assert (loaded.config, loaded.notes) == (Config(), ())
    ours = load(flags={}, environ=environ | {"WARMROUTE_GATEWAY_PORT": "9000"})
    assert ours.config.gateway.port == 9000
    assert "is no integer" in refused(environ={"WARMROUTE_GATEWAY_PORT": "tcp://10.0.0.1:8080"}), "no such service"


def test_all_errors_at_once_a_line_each_in_the_trees_order() -> None:
    document = {"nope": 1, "engines": ["http://", {"url": "b", "x": 1}], "log": {"level": 3}}
    with pytest.raises(JointConfigError) as caught:
        file(document, flags={"gateway.port": "x"}, environ={"WARMROUTE_X": "1"})
    keys = ["nope", "WARMROUTE_X", "engines[0].url", "engines[1].url", "engines[1].x", "gateway.port", "log.level"]
    assert [error.key for error in caught.value.errors] == keys
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == keys
    assert caught.value.key == "nope"


def test_one_error_comes_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={"gateway.port": "x"}, environ={})
    assert type(caught.value) is ConfigError
    assert caught.value.key == "gateway.port"
    assert caught.value.remedy == "Give an integer from 0 to 65535."


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(LEAVES)), value=PLAIN)
def test_any_value_gives_a_configuration_or_a_config_error(key: str, value: object) -> None:
    section, dot, name = key.partition(".")
    with suppress(ConfigError):
        assert isinstance(file({section: {name: value} if dot else value}).config, Config)


@given(document=PLAIN, text=st.text())
def test_any_document_and_any_text_give_a_configuration_or_a_config_error(document: object, text: str) -> None:
    environ = {leaf.variable: text for leaf in LEAVES.values()}
    with suppress(ConfigError):
        load(flags={}, environ={}, document=document)
    with suppress(ConfigError):
        load(flags={}, environ=environ)


def test_a_section_of_a_section() -> None:
    loaded = file({"discovery": {"kubernetes": {"enabled": True, "namespaces": "a, b"}, "file": None}})
    assert (loaded.config.discovery.kubernetes.enabled, loaded.config.discovery.file.path) == (True, None)
    with pytest.raises(ConfigError, match=r"discovery\.kubernets: unknown setting .* Known here: kubernetes, file"):
        file({"discovery": {"kubernets": {}}})
    with pytest.raises(ConfigError, match=r"discovery\.kubernetes: true .* is not a mapping"):
        file({"discovery": {"kubernetes": True}})
    with pytest.raises(ConfigError, match="a dotted key at the top"):
        file({"discovery.kubernetes": {"enabled": True}})


@pytest.mark.parametrize(
    ("name", "text"),
    [("namespaces", "a,,b"), ("namespaces", "*,a"), ("namespaces", "A"), ("selector", "a=b;c"), ("selector", "")],
)
def test_what_no_cluster_would_take_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"discovery.kubernetes.{name}"):
        file({"discovery": {"kubernetes": {name: text}}})
