"""What is being lost, as far as it is known now: a page beside a journal, for whoever takes that over.

A loss is counted until its window is over and only then becomes an event. A process that is killed before
that would take the count along. So each open window stands on a page of fixed size, which is made with the
journal and written in place: neither a full disk nor a journal at its bound is in the way.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ROOM", "LossPage", "read_page"]

_HEAD: Final = struct.Struct("<4sIQI")
"""Mark, length of the payload, number of the version, CRC-32 of that number and the payload."""
_NUMBER: Final = struct.Struct("<Q")
_MARK: Final = b"LOSS"
_SIDE: Final = 4096
"""Bytes of one of the two sides. They are written in turn, so half a write leaves the version before."""
ROOM: Final = _SIDE - _HEAD.size
"""Most bytes that a page can say."""
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class LossPage:
    """The page of a living process. Whoever writes it has a lock of his own.

    Args:
        path: of the file, which must not exist.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = os.open(path, _FLAGS, 0o600)
        self._version = 0
        self._dirty = False
        try:
            if os.write(self._descriptor, bytes(2 * _SIDE)) < 2 * _SIDE:
                raise OSError(f"no room for {path}")
        except OSError:
            self.close()
            path.unlink()
            raise

    def write(self, payload: bytes) -> None:
        """Replace what it says.

        Raises:
            OSError: the disk refuses.
        """
        if self._descriptor is None:
            return
        self._version += 1
        number = _NUMBER.pack(self._version)
        crc = zlib.crc32(payload, zlib.crc32(number))
        data = _HEAD.pack(_MARK, len(payload), self._version, crc) + payload
        os.lseek(self._descriptor, self._version % 2 * _SIDE, os.SEEK_SET)
        os.write(self._descriptor, data)
        self._dirty = True

    def sync(self) -> None:
        """Make it durable against the loss of power.

        Raises:
            OSError: the disk refuses.
        """
        if self._dirty and self._descriptor is not None:
            self._dirty = False
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Give it up, as it is."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def read_page(path: Path) -> bytes:
    """What a page says; nothing if there is none, or if it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    sides = (_content(data, start) for start in (0, _SIDE))
    return max((side for side in sides if side is not None), default=(0, b""))[1]


def _content(data: bytes, start: int) -> tuple[int, bytes] | None:
    """Number and content of a side, if it is whole."""
    if len(data) < start + _HEAD.size:
        return None
    mark, length, version, crc = _HEAD.unpack_from(data, start)
    payload = data[start + _HEAD.size : start + _HEAD.size + length]
    if mark != _MARK or len(payload) != length or length > ROOM:
        return None
    return (version, payload) if zlib.crc32(payload, zlib.crc32(_NUMBER.pack(version))) == crc else None
