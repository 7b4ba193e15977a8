"""Settings are checked at once, by name."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from aio_agentapi import Settings
from aio_agentapi._settings import PATHS, check_base_url
from aio_agentapi.errors import UsageError


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1.5},
        {"limit": True},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": None},
        {"timeout": "5"},
        {"max_wait": -1},
        {"deadline": 0},
        {"max_waiting": -1},
        {"lane": "fast"},
        {"batch_floor": -1},
        {"attempts": 0},
        {"drain": -0.1},
        {"abandon_after": -1},
        {"linger": float("nan")},
        {"feed_interval": 0},
        {"connect_timeout": 0},
        {"keepalive": 0},
        {"zone": "Mars/Phobos"},
        {"zone": None},
        {"zone": "../etc"},
        {"max_answer": 0},
        {"paths": {"agents.nothing": "x"}},
        {"paths": {"agents.list": "/agent/list"}},
        {"paths": {"agents.list": ""}},
    ],
)
def test_a_value_out_of_range_names_its_field(wrong: dict[str, Any]) -> None:
    """The message starts with the field, and nothing was sent."""
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name}: "):
        Settings(**wrong)


def test_the_defaults_are_those_that_are_documented() -> None:
    """The defaults are the product: a change of one is a change of it."""
    settings = Settings()
    expected = {
        "limit": 50,
        "timeout": 30.0,
        "max_wait": None,
        "deadline": None,
        "max_waiting": None,
        "lane": "interactive",
        "batch_floor": 10,
        "attempts": 3,
        "abandon_after": 60.0,
        "linger": 1.0,
        "longest_call": None,
        "amount_decimals": None,
        "resolve_every": None,
        "drain": 5.0,
        "feed_interval": 30.0,
        "feed_lag": 5.0,
        "sole_writer": True,
        "block_unknown": False,
        "keep_intents": 30 * 24 * 3600.0,
        "connect_timeout": 10.0,
        "keepalive": 15.0,
        "proxy": None,
        "ssl": None,
        "local_address": None,
        "zone": "UTC",
        "paths": PATHS,
        "allow_plain_http": False,
        "max_answer": 64 * 1024 * 1024,
        "max_connection_age": 300.0,
        "max_connections": None,
        "max_header_size": 64 * 1024,
    }
    assert expected == attrs.asdict(settings, recurse=False)


def test_a_path_can_be_changed_alone() -> None:
    """Paths that are not named keep their default, also in an evolved copy."""
    settings = Settings(paths={"points.transfer": "point/give"})
    assert settings.paths["points.transfer"] == "point/give"
    assert settings.paths["points.reclaim"] == "points/reclaim"
    assert attrs.evolve(settings, limit=3).paths == settings.paths


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "api.example.com",
        "ftp://api.example.com",
        "https://",
        "https://u:p@api.example.com",
        "https://api.example.com?x=1",
        "https://api.example.com#x",
        "https://api.example.com/v4",
        "https://api.example.com/v4/",
        "https://api.example.com:99999999",
        "https://api.example.com\n",
        "https://a..example.com",
        f"https://{'x' * 64}.example.com",
        "http://api.example.com",
        "http://localhost.example.com",
        None,
    ],
)
def test_a_base_url_that_cannot_be_is_refused(wrong: Any) -> None:
    """Slips are found at construction, plain HTTP to elsewhere among them."""
    with pytest.raises(UsageError, match=r"^base_url: "):
        check_base_url(wrong, allow_plain_http=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("api.example.com", "a path if it has one, not 'api.example.com'"),
        ("ftp://api.example.com/x", "not 'ftp://api.example.com/x'"),
        ("https://a:b@c@api.example.com", "as 'https://***@api.example.com' has"),
        ("https://a:b/c@api.example.com", "not 'https://***@api.example.com'"),
        ("https://api.example.com?token=abc", "as 'https://api.example.com?***' has"),
        ("https://api.example.com#abc", "as 'https://api.example.com#***' has"),
        (f"ftp://x/{'0' * 8}-0000-0000-0000-{'0' * 12}", "not 'ftp://x/***'"),
        ("0123456789abcdef", "not a text of 16 characters"),
        (f"{'a' * 30}.{'b' * 30}.{'c' * 30}", "not a text of 92 characters"),
        (3, "not of type int"),
    ],
)
def test_a_wrong_base_url_is_shown_without_secrets(wrong: Any, said: str) -> None:
    """What was found, but for what may be a password or a token."""
    with pytest.raises(UsageError) as caught:
        check_base_url(wrong, allow_plain_http=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        "https://api.example.com",
        "https://api.example.com/casino",
        "http://localhost:8000",
        "http://127.9.9.9",
        "http://[::1]:80",
    ],
)
def test_a_base_url_may_have_a_path_and_be_plain_on_loopback(right: str) -> None:
    """A slash at the end does not matter."""
    assert right == check_base_url(right + "/", allow_plain_http=False)


def test_plain_http_can_be_allowed() -> None:
    """On a network that the caller trusts."""
    assert (
        check_base_url("http://api.example.com", allow_plain_http=True)
        == "http://api.example.com"
    )
