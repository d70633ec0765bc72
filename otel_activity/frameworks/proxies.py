"""The client's address behind proxies: X-Forwarded-For or RFC 7239, believed only from trusted hops."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Proxies"]

_LENGTH: Final = 4_096
_HOPS: Final = 32
_ELEMENT: Final = re.compile(r'(?:"[^"]*"|[^,"])+')
_PAIR: Final = re.compile(r'(?:"[^"]*"|[^;"])+')

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """Which hops are believed, and in which header they tell whom they serve.

    Args:
        trusted: addresses and networks.
        header: ``x-forwarded-for`` or ``forwarded``. Only one, because proxies pass on what they do not know:
            the other one is the client's free text.
    """

    def __init__(self, trusted: Sequence[str] = (), header: str = "x-forwarded-for") -> None:
        self.header = header
        self._trusted = tuple(ipaddress.ip_network(network) for network in trusted)

    def client(self, peer: str, values: Sequence[str]) -> str:
        """The client's address: the last hop that is not trusted.

        Args:
            peer: the other end of the connection.
            values: of the header, in the order in which they came.
        """
        address = _address(peer)
        if address is None or not self._believes(address):
            return peer
        text = ",".join(values)[-_LENGTH:]
        hops = _forwarded(text) if self.header == "forwarded" else text.split(",")
        for hop in reversed(hops[-_HOPS:]):
            found = _address(hop.strip())
            if found is None:
                break
            address = found
            if not self._believes(address):
                break
        return str(address).partition("%")[0]  # a zone is any text, and means something on that host only

    def believes(self, peer: str) -> bool:
        """Whether the other end of the connection is a trusted hop."""
        address = _address(peer)
        return address is not None and self._believes(address)

    def _believes(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded(text: str) -> list[str]:
    """The ``for`` of each element; empty for one that does not say, which ends the walk.

    Split from the right: a quote that the client did not close must not swallow what a proxy added.
    """
    return [_for(element[::-1]) for element in reversed(_ELEMENT.findall(text[::-1]))]


def _for(element: str) -> str:
    for pair in _PAIR.findall(element):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return str(value.strip().strip('"'))
    return ""


def _address(text: str) -> _Address | None:
    """An IP address, with or without port; one of IPv4 in an IPv6 socket is what it is."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
