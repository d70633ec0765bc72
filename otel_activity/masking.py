"""Connection strings and URLs without their secrets, for messages and logs."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["mask_dsn"]

_CONNINFO = re.compile(r"\s*\w+\s*=")
_SCHEME = re.compile(r"\s*[\w+.-]+:/{1,2}|/{0,2}")
_WEB = re.compile(r"\s*https?:", re.IGNORECASE)
_HOSTS = re.compile(r"(?:(?:\[[^]@]*\]|[^][:/?,@]*)(?::\d*)?(?:,|(?=[/?]|\Z)))+(?:[/?].*)?", re.DOTALL)
"""What may stand behind the scheme where no login does: hosts, each with a port, then whatever."""
_QUERY = re.compile(
    r"\?(?:user|password|host|hostaddr|port|dbname|service|options|passfile|require_auth|"
    r"channel_binding|connect_timeout|target_session_attrs|(?:fallback_)?application_name|ssl\w+|gss\w+)="
)
"""The beginning of libpq's parameters: any other question mark may be part of a password."""
_HIDDEN_NAMES = r"(?:\w*pass(?:word|wd)?|\w*secret|scram_\w+_key)"
_SECRET = re.compile(
    # As libpq reads it. A quote that is not closed hides all that follows.
    rf"({_HIDDEN_NAMES}\s*=\s*)('(?:[^'\\]|\\.|'')*(?:'[^\s'&]*|\Z)|(?:[^\s\\]|\\.)+)",
    re.IGNORECASE | re.DOTALL,
)
_PARAMETER = re.compile(r"([?&])([^?&=]+)=([^&]*(?:&[^=&]*(?=&|\Z))*)")
"""Of a URL. What follows without a name of its own belongs to the value, which was not escaped."""
_HIDDEN_PARAMETER = re.compile(_HIDDEN_NAMES, re.IGNORECASE)
_HIDDEN_WEB_PARAMETER = re.compile(r".*(?:pass|pwd|secret|token|key|auth|sig).*", re.IGNORECASE)


def mask_dsn(dsn: str) -> str:
    """The DSN with every password replaced by ``***``, for messages and logs.

    >>> mask_dsn("postgresql://audit:s3cret@db/app")
    'postgresql://audit:***@db/app'
    """
    scheme = _SCHEME.match(dsn)
    if _CONNINFO.match(dsn) or scheme is None:
        return _SECRET.sub(r"\1***", dsn)
    return f"{scheme[0]}{_mask_url(dsn[scheme.end() :], scheme[0])}"


def _mask_url(rest: str, scheme: str) -> str:
    """What follows the scheme of a URL, without its secrets."""
    web = _WEB.match(scheme) is not None
    query = _QUERY.search(rest)
    end = query.start() if query else len(rest)
    # To the last @: a password that was not escaped may hold any character.
    login, mark, host = rest[:end].rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        rest = f"{user}:***{mark}{host}{rest[end:]}"
    elif mark and web and "/" not in login:
        rest = f"***{mark}{host}{rest[end:]}"  # a token in the place of the user
    elif scheme.strip().endswith("://") and not mark and not _HOSTS.fullmatch(rest):
        return f"{rest.partition(':')[0]}:***"  # perhaps a login whose host was forgotten
    names = _HIDDEN_WEB_PARAMETER if web else _HIDDEN_PARAMETER

    def masked(found: re.Match[str]) -> str:
        is_secret = names.fullmatch(unquote(found[2]).strip()) is not None
        return f"{found[1]}{found[2]}=***" if is_secret else found[0]

    return _SECRET.sub(_once, _PARAMETER.sub(masked, rest)) if "=" in rest else rest


def _once(found: re.Match[str]) -> str:
    """A value in a text that is no URL after all; what is masked already keeps what stands behind it."""
    return found[0] if found[2].startswith("***") else f"{found[1]}***"
