"""Who is let in, by a request's head alone."""

from __future__ import annotations

import pytest

from warmroute.core.keys import digest_of, parse_keys
from warmroute.errors import ClientError
from warmroute.service.access import Access
from warmroute.service.ports import RequestHead

KEYS = parse_keys(f"alice {digest_of('s3cret')}", "k")


def head(target: str = "/v1/completions", method: bytes = b"POST", **headers: str) -> RequestHead:
    fields = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return RequestHead(method, target.encode(), fields)


def refusal(access: Access, request: RequestHead) -> tuple[int, str | None]:
    with pytest.raises(ClientError) as caught:
        access.admit(request)
    assert "s3cret" not in str(caught.value)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer s3cret"},
        {"authorization": "bearer  s3cret "},
        {"X-Api-Key": "s3cret"},
        {"x_api_key": "s3cret", "authorization": "Basic abc"},
    ],
)
def test_a_known_key_is_let_in_and_taken_out(headers: dict[str, str]) -> None:
    asked = head(accept="*/*", **headers, X_Warmroute_Key="root")
    assert Access(KEYS).admit(asked).headers == ((b"accept", b"*/*"), (b"x-warmroute-key", b"alice"))


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Basic s3cret"}, "missing_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"authorization": "Bearer s3cre"}, "invalid_api_key"),
        ({"authorization": "Bearer s3cret s3cret"}, "invalid_api_key"),
        ({"x_api_key": "alice"}, "invalid_api_key"),
        ({"x_warmroute_key": "alice"}, "missing_api_key"),
    ],
)
def test_others_are_not(headers: dict[str, str], code: str) -> None:
    access = Access(KEYS)
    assert refusal(access, head(**headers)) == (401, code)
    assert access.refused == {"no_key" if code == "missing_api_key" else "wrong_key": 1}


def test_probes_need_no_key_but_only_as_probes() -> None:
    access = Access(KEYS)
    for path in ("/health", "/ready", "/ready?x"):
        assert access.admit(head(path, b"GET")).target == path.encode()
        assert refusal(access, head(path))[0] == 401
    for path in ("/metrics", "/workers", "/healthz", "/health/", "//health"):
        assert refusal(access, head(path, b"GET"))[0] == 401


def test_without_keys_nothing_is_asked_for_and_nothing_taken_out() -> None:
    asked = head(authorization="Bearer of the engine")
    assert Access(None).admit(asked) is asked


SERVED = [
    *("/v1/chat/completions", "/v1/completions?x=1", "/v1/models", "/v1/models/org/name", "/v1/models/org%2Fname"),
    *("/health", "/ready", "/tokenize", "/rerank", "/version"),
]
OPERATORS = [
    *("/metrics", "/workers", "/decisions/x", "/reset_prefix_cache", "/sleep", "/wake_up", "/collective_rpc", "/"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_lora_adapter/", "/v1/load%5Flora_adapter"),
    *("/v1//load_lora_adapter", "/v1/./load_lora_adapter", "/v1/../sleep", "/v1/%2e%2e/sleep", "/v1/..%2fsleep"),
    *("/v1/load_lora_adapter#", "/v1/load_lora_adapter%23", "/v1/load_lora_adapter%3Fx", "/v1/load_lora_adapter;x"),
    *("http://g/sleep", "http://g/v1/completions", "*", "/v1\\..\\sleep", "/v1/%00", "/%76%31/unload_lora_adapter"),
]


@pytest.mark.parametrize("path", SERVED)
def test_clients_get_inference(path: str) -> None:
    assert Access(None, inference_only=True).admit(head(path))


@pytest.mark.parametrize("path", OPERATORS)
def test_clients_do_not_get_what_operators_have(path: str) -> None:
    access = Access(KEYS, inference_only=True)
    assert refusal(access, head(path, authorization="Bearer s3cret"))[0] == 404
    assert access.refused == {"path": 1}
