"""Origins: which pages may talk to a server, look-alikes included; runs no server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backsync_asgi.sockjs.origins import Headers, Origins, preflight, same_origin

GOOD = "https://good.example"
ORIGIN, CREDENTIALS = b"access-control-allow-origin", b"access-control-allow-credentials"

LOOK_ALIKES = [
    b"https://good.example.evil",
    b"https://evil-good.example",
    b"https://goodXexample",
    b"http://good.example",
    b"https://good.example:8443",
    b"https://good.example:443",
    b"https://good.example.",
    b"https://good.example/",
    b"https://good.example/x",
    b"https://user@good.example",
    b"https://good.example@evil.example",
    b"https://GOOD.example",
    b"https://xn--good-example",
    "https://gооd.example".encode(),  # Cyrillic letters
    b"https://" + b"a" * 10_000,
    b"https://good.example\x80",
    b"\x80\xff",
    b"https://evil",
    b"null",
    b"*",
    b"",
    b"://",
    b"https://[::1",
    b"https://good.example:99999",
    b"https://good.example:x",
]


def from_origin(*origins: bytes, host: bytes = b"good.example") -> Headers:
    return [(b"host", host), *((b"origin", origin) for origin in origins)]


def test_a_request_without_an_origin_comes_from_no_foreign_page() -> None:
    for rule in (None, [GOOD], [], "*"):
        assert Origins(rule).allows([(b"host", b"anything")], "http")


@pytest.mark.parametrize("origin", LOOK_ALIKES, ids=lambda it: repr(it[:40]))
def test_a_look_alike_is_not_on_the_list(origin: bytes) -> None:
    headers = from_origin(origin)
    assert not Origins([GOOD]).allows(headers, "https")
    assert Origins([GOOD]).cors(headers, "https") == []


@pytest.mark.parametrize(
    "origin", [each for each in LOOK_ALIKES if each not in (b"https://good.example:443", b"https://GOOD.example")]
)
def test_a_look_alike_is_not_the_same_origin(origin: bytes) -> None:
    assert not Origins(None).allows(from_origin(origin), "https")
    assert Origins(None).cors(from_origin(origin), "https") == []


def test_two_origins_are_no_origin() -> None:
    for rule in (None, [GOOD]):
        assert not Origins(rule).allows(from_origin(GOOD.encode(), GOOD.encode()), "https")
        assert Origins(rule).cors(from_origin(GOOD.encode(), GOOD.encode()), "https") == []


def test_who_is_on_the_list_gets_its_own_name_back_and_may_bring_cookies() -> None:
    origins = Origins([GOOD, "http://localhost:3000"])
    assert origins.allows(from_origin(GOOD.encode(), host=b"other"), "http")
    assert origins.cors(from_origin(b"http://localhost:3000"), "http") == [
        (ORIGIN, b"http://localhost:3000"),
        (CREDENTIALS, b"true"),
        (b"vary", b"Origin"),
    ]


def test_null_is_allowed_only_where_it_is_named() -> None:
    assert Origins(["null"]).allows(from_origin(b"null"), "http")
    assert not Origins([GOOD]).allows(from_origin(b"null"), "http")
    assert not Origins(None).allows(from_origin(b"null"), "http")


def test_with_every_origin_allowed_each_is_echoed() -> None:
    origins = Origins("*")
    for origin in (b"https://evil", b"null"):
        assert origins.allows(from_origin(origin), "http")
        assert (ORIGIN, origin) in origins.cors(from_origin(origin), "http")
    assert origins.cors([], "http") == [(ORIGIN, b"*")]


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_no_origin_breaks_a_header_whatever_the_rule(origin: bytes) -> None:
    for rule in (None, [GOOD], "*"):
        origins = Origins(rule)
        assert origins.allows(from_origin(origin), "https") in (True, False)
        for _, value in origins.cors(from_origin(origin), "https"):
            assert all(0x20 <= byte < 0x7F for byte in value)


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["http", "https", "ws", "wss"]))
@settings(deadline=None)
def test_any_origin_and_host_can_be_compared(origin: str, host: str, scheme: str) -> None:
    assert same_origin(origin, host, scheme) in (True, False)
    assert same_origin(f"https://{origin}", host, scheme) in (True, False)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://a.example", "a.example", "http"),
        ("http://a.example", "a.example:80", "ws"),
        ("http://a.example:8000", "a.example:8000", "http"),
        ("https://a.example", "a.example", "https"),
        ("https://a.example", "a.example:443", "wss"),
        ("https://a.example", "a.example", "http"),  # a proxy ends TLS
        ("https://a.example", "a.example", "ws"),
        ("http://[::1]:8000", "[::1]:8000", "http"),
        ("http://A.example", "a.EXAMPLE", "http"),
    ],
)
def test_the_same_origin(origin: str, host: str, scheme: str) -> None:
    assert same_origin(origin, host, scheme)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://a.example", "a.example", "https"),  # a page that could be forged on the way
        ("http://a.example", "a.example", "wss"),
        ("http://a.example", "a.example:8000", "http"),
        ("http://a.example:8000", "a.example", "http"),
        ("http://a.example", "b.example", "http"),
        ("http://b.a.example", "a.example", "http"),
        ("http://a.example", "", "http"),
        ("http://", "", "http"),
        ("ftp://a.example", "a.example", "http"),
        ("file://", "", "http"),
        ("http://user@a.example", "user@a.example", "http"),
        ("http://a.example", "a b/../x?y", "http"),
    ],
)
def test_another_origin(origin: str, host: str, scheme: str) -> None:
    assert not same_origin(origin, host, scheme)


@pytest.mark.parametrize(
    "entry", ["example.com", "https://a.example/", "https://a.example/x", "HTTPS://A", "", "https:"]
)
def test_an_entry_that_is_no_origin_is_found_at_start(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins got"):
        Origins([entry])


def test_a_preflight_echoes_the_headers_that_are_asked_for() -> None:
    asked = [(b"access-control-request-headers", b"a, b, c")]
    assert dict(preflight(asked, b"OPTIONS, POST")) == {
        b"access-control-allow-methods": b"OPTIONS, POST",
        b"access-control-max-age": b"31536000",
        b"access-control-allow-headers": b"a, b, c",
    }


@pytest.mark.parametrize("asked", [b"a\r\nx: y", b"a\n", b"x" * 8192, b"a(b)", b'"', b"\xff", b""])
def test_a_preflight_echoes_nothing_odd(asked: bytes) -> None:
    answer = dict(preflight([(b"access-control-request-headers", asked)], b"OPTIONS, POST"))
    assert b"access-control-allow-headers" not in answer
