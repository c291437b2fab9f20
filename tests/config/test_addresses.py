"""What counts as an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.addresses import IpcAddress, TcpAddress, check_listen_host, parse_url, parse_zmq
from warmroute.config.ranges import Form
from warmroute.types import Endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.1:8000", Endpoint("10.0.0.1", 8000)),
        ("http://vllm-0.vllm.svc.cluster.local:8000/", Endpoint("vllm-0.vllm.svc.cluster.local", 8000)),
        ("HTTP://Some_Host:1", Endpoint("some_host", 1)),
        ("https://a", Endpoint("a", 443, tls=True)),
        ("http://a", Endpoint("a", 80)),
        ("http://not-an-ip:80", Endpoint("not-an-ip", 80)),
        ("http://[::1]:8000", Endpoint("::1", 8000)),
        ("http://[2001:DB8::0]:65535", Endpoint("2001:db8::", 65535)),
        ("http://a.:80", Endpoint("a.", 80)),
    ],
)
def test_urls(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url) == endpoint


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "is no http"),
        ("10.0.0.1:8000", "is no http"),
        ("ftp://a:1", "is no http"),
        ("http:/a:1", "is no http"),
        ("http://", "has no host"),
        ("http://:8000", "has no host"),
        ("http://a:", "has a port"),
        ("http://a:0", "has a port"),
        ("http://a:65536", "has a port"),
        ("http://a:-1", "has a port"),
        ("http://a:99999999999999999999", "has a port"),
        ("http://a:b", "is not HOST:PORT"),
        ("http://a:1:2", "is not HOST:PORT"),
        ("http://::1:8000", "is not HOST:PORT"),
        ("http://[::1", "is not HOST:PORT"),
        ("http://[::g]:1", "has no IPv6 address"),
        ("http://[]:1", "has no IPv6 address"),
        ("http://10.0.0.256:1", "has no valid IP address"),
        ("http://10.0.1:1", "has no valid IP address"),
        ("http://a b:1", "has no valid host"),
        ("http://a..b:1", "has no valid host"),
        ("http://.:1", "has no valid host"),
        ("http://-a:1", "has no valid host"),
        ("http://*:1", "has no valid host"),
        ("http://" + "a." * 127 + "a:1", "has no valid host"),
        ("http://a:1/v1", "leave out the path"),
        ("http://a:1?b", "leave out the path"),
        ("http://a:1#", "leave out the path"),
        ("http://u:p@a:1", "carries a user name"),
    ],
)
def test_urls_refused(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        parse_url(url)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://10.0.0.1:5557", TcpAddress("10.0.0.1", 5557)),
        ("tcp://[::1]:5557", TcpAddress("::1", 5557)),
        ("tcp://engine:1", TcpAddress("engine", 1)),
        ("ipc:///tmp/kv", IpcAddress("/tmp/kv")),
        ("ipc://@abstract", IpcAddress("@abstract")),
    ],
)
def test_zmq_addresses(text: str, address: TcpAddress | IpcAddress) -> None:
    assert parse_zmq(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no tcp"),
        ("10.0.0.1:5557", "is no tcp"),
        ("http://a:1", "is no tcp"),
        ("inproc://a", "is no tcp"),
        ("tcp://*:5557", "names no host to connect to"),
        ("tcp://a", "has no port"),
        ("tcp://a:0", "has a port"),
        ("tcp://a:65536", "has a port"),
        ("tcp://:5557", "has no host"),
        ("tcp://a:5557/x", "is not HOST:PORT"),
        ("ipc://", "has no path"),
    ],
)
def test_zmq_addresses_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_zmq(text)


@given(text=st.text() | st.text(alphabet="htps:/[]@.a1*-?#").map("http://".__add__))
def test_any_text_parses_or_is_a_value_error(text: str) -> None:
    for parse in (parse_url, parse_zmq, check_listen_host):
        refusal = Form("", parse).refuse(text)
        assert refusal is None or refusal.startswith(("is ", "has ", "carries "))


@given(port=st.integers(1, 65535), host=st.ip_addresses())
def test_an_endpoints_own_url_parses_to_itself(port: int, host: object) -> None:
    endpoint = parse_url(Endpoint(str(host), port).url)
    assert parse_url(endpoint.url) == endpoint
