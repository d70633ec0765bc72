"""The rules that say which requests are reported."""

from __future__ import annotations

import pytest

from otel_activity.errors import ConfigurationError
from otel_activity.rules import RequestRule, is_reported
from otel_activity.settings import Settings


def reported(text: str, method: str, route: str, status: int) -> bool:
    """What the setting says about one request."""
    rules = Settings.from_env({"OTEL_ACTIVITY_REQUESTS": text}).requests
    return is_reported([RequestRule.parse(rule) for rule in rules], method, route, status)


@pytest.mark.parametrize(
    ("rules", "method", "route", "status", "expected"),
    [
        ("*", "GET", "/", 200, True),
        ("*", "GET", "", 404, True),
        ("writes", "POST", "/tasks", 201, True),
        ("writes", "_OTHER", "/tasks", 201, True),
        ("writes", "GET", "/tasks", 200, False),
        ("writes", "OPTIONS", "/tasks", 200, False),
        ("reads", "HEAD", "/tasks", 200, True),
        ("post|put", "PUT", "/tasks", 200, True),
        ("POST|PUT", "PATCH", "/tasks", 200, False),
        ("401", "GET", "/", 401, True),
        ("401|5xx", "GET", "/", 503, True),
        ("4xx", "GET", "/", 503, False),
        ("GET /admin/*", "GET", "/admin/users/{id}", 200, True),
        ("GET /admin/*", "POST", "/admin/users/{id}", 200, False),
        ("GET /admin/*", "GET", "/my/admin/users", 200, False),
        ("/admin/*", "GET", "/admin", 200, False),
        ("/tasks/<int:number>/", "GET", "/tasks/<int:number>/", 200, True),
        ("/a.c", "GET", "/abc", 200, False),
        ("*/export", "GET", "/v2/reports/{id}/export", 200, True),
        ("403 /admin/* GET", "GET", "/admin/x", 403, True),
        ("403 /admin/* GET", "GET", "/admin/x", 200, False),
        ("writes, 401 , 403", "GET", "/", 403, True),
        ("*,!/health", "GET", "/health", 200, False),
        ("!/health,*", "GET", "/health", 200, False),
        ("*,!/health 2xx", "GET", "/health", 503, True),
        ("*,! reads", "GET", "/", 200, False),
    ],
)
def test_rules(rules: str, method: str, route: str, status: int, expected: bool) -> None:
    """All conditions of a rule, any rule, no exception."""
    assert reported(rules, method, route, status) is expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("wirtes", "did you mean 'WRITES'"),
        ("GTE /admin/*", "did you mean 'GET'"),
        ("admin", "neither a method nor a status code"),
        ("600", "no status code: '600'"),
        ("40x", "no status code: '40x'"),
        ("GET|401", "mixes methods and status codes"),
        ("GET POST", "second method"),
        ("GET /a /b", "second route"),
        ("!", "empty rule"),
        ("!/health", "nothing but exceptions"),
        (",", "nothing but exceptions"),
    ],
)
def test_a_wrong_rule_is_refused(text: str, problem: str) -> None:
    """A misspelt rule stops the start; it never means that fewer requests are reported."""
    with pytest.raises(ConfigurationError, match="OTEL_ACTIVITY_REQUESTS=") as refused:
        Settings.from_env({"OTEL_ACTIVITY_REQUESTS": text})
    assert problem in str(refused.value)


def test_an_argument_may_be_a_list() -> None:
    """As every other setting with several values."""
    assert Settings.from_env({}, requests=["writes", " GET   /admin/* "]).requests == (
        "writes",
        "GET /admin/*",
    )
