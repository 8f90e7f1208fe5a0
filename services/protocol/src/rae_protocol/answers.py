"""What counts as control's answer; everything else comes from something in between.

Each call names a reader, which takes the body that the call promises and raises ValueError for
anything else. The transport makes `Unreachable` of that.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import requests
from urllib3.exceptions import HTTPError

from rae_protocol import models
from rae_protocol.errors import RemoteError, comes_with
from rae_protocol.names import SHA256_PATTERN
from rae_protocol.trickle import SLOWEST_BYTES_PER_S

M = TypeVar("M", bound=models.Model)

MIB = 1024 * 1024
# The largest answers carry a task's body and result; a list has 500 tasks.
MAX_ANSWER_BYTES = 64 * MIB
MAX_TASK_BYTES = 32 * MIB
MAX_SMALL_BYTES = MIB
_PIECE = 64 * 1024
_RC = re.compile(r"[a-z][a-z0-9_]{0,63}")


class BrokenOff(ValueError):
    """An answer that began and did not end."""


class Unsigned(ValueError):
    """An answer without the signature that control puts on its answers to this caller."""


class Answer:
    """An answer whose body is still to be read, once.

    `check` says what control's clock was, from what it signed; None where nothing is signed. Given
    the SHA-256 of the body it raises ValueError for an answer that is not control's.
    """

    def __init__(
        self,
        response: requests.Response,
        patience_s: float,
        check: Callable[[Callable[[], str]], float | None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signed_at: float | None = None
        self._check = check
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._raw = response.raw
        self._patience_s, self._monotonic = patience_s, monotonic

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises ValueError when it is compressed, BrokenOff."""
        # We ask for none and control uses none: nothing small can become large here.
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise ValueError("it is compressed, and control compresses nothing")
        began, size = self._monotonic(), 0
        try:
            # read1 returns what is there; read would wait for a whole piece, however slow it is.
            while piece := self._raw.read1(_PIECE, decode_content=False):
                size += len(piece)
                yield piece
                spent = self._monotonic() - began
                if spent > self._patience_s + size / SLOWEST_BYTES_PER_S:
                    raise BrokenOff(f"only {size} bytes came in {spent:.0f} s")
        except (HTTPError, OSError) as error:
            raise BrokenOff(f"{type(error).__name__} after {size} bytes") from error

    def body(self, most: int) -> bytes:
        """All of it. Raises ValueError when it is larger than that."""
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > most:
                raise ValueError(f"its body has more than {most} bytes")
        self.signed_at = self._check(lambda: hashlib.sha256(found).hexdigest())
        return bytes(found)

    def named(self) -> str | None:
        """The SHA-256 of the body as the ETag gives it, for who compares the bytes with it."""
        tag = self.headers.get("ETag", "")
        name = tag[1:-1] if tag[:1] == tag[-1:] == '"' else ""
        if not re.fullmatch(SHA256_PATTERN, name):
            return None
        self.signed_at = self._check(lambda: name)
        return name


def json_of(
    model: type[M], most: int = MAX_ANSWER_BYTES, right: Callable[[M], bool] = lambda _: True
) -> Callable[[Answer], M]:
    """Reads a body of this model; `right` is whether it answers what was asked."""

    def read(answer: Answer) -> M:
        value = _parsed(model, answer.body(most))
        if not right(value):
            raise ValueError("it answers something else")
        return value

    return read


def _parsed(model: type[M], body: bytes) -> M:
    if not body.lstrip().startswith(b"{"):  # a page: what a parser says of it helps no one
        raise ValueError("its body is no JSON object")
    return models.parse_answer(model, body)


def about_task(task_id: str) -> Callable[[Answer], models.ResultAnswer]:
    """Reads the answer to a node's call about a task, which names that task."""
    return json_of(models.ResultAnswer, MAX_SMALL_BYTES, lambda found: found.task_id == task_id)


def refusal(answer: Answer) -> RemoteError:
    """An error of control. Raises ValueError for anything else."""
    body = _parsed(models.ErrorBody, answer.body(MAX_SMALL_BYTES))
    if not _RC.fullmatch(body.rc) or not comes_with(body.rc, answer.status):
        raise ValueError(f"control does not answer {body.rc[:64]!r} with this status")
    return RemoteError(
        body.rc, body.message, answer.status, body.detail, retry_after_s=retry_after_s(answer)
    )


def retry_after_s(answer: Answer) -> float | None:
    """Seconds, also where the header has a date, as proxies write it; None for anything else."""
    after = answer.headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", after):
        return float(after)
    end = _moment(after)
    if end is None:
        return None
    sent = _moment(answer.headers.get("Date", ""))  # who wrote the one has this clock
    return max(0.0, end - (time.time() if sent is None else sent))


def _moment(text: str) -> float | None:
    """A date of a header in unix seconds."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def has_blob(sha256: str) -> Callable[[Answer], None]:
    """Reads the answer to HEAD of a blob: it names the content."""

    def read(answer: Answer) -> None:
        if answer.named() != sha256:
            raise ValueError("its ETag does not name the blob")

    return read


def file_at(target: Path, most: int, sha256: str | None = None) -> Callable[[Answer], int]:
    """Writes the body to a new file and returns its size; the answer names what it brings.

    A file is left only when all of it came. Raises OSError.
    """

    def read(answer: Answer) -> int:
        named = answer.named()
        if named is None or sha256 not in {None, named}:
            raise ValueError("its ETag does not name the content")
        size, digest = save(answer.pieces(), target, most)
        if digest != named:
            target.unlink()
            raise ValueError(f"its {size} bytes are not the content that its ETag names")
        return size

    return read


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Bytes of an attempt's log; the next ones begin at `offset`."""

    attempt: int
    offset: int
    complete: bool
    data: bytes


def log_from(offset: int) -> Callable[[Answer], LogPiece]:
    """Reads a piece of a log; its headers say where it ends."""

    def read(answer: Answer) -> LogPiece:
        names = ("X-RAE-Attempt", "X-RAE-Next-Offset", "X-RAE-Complete")
        words = [answer.headers.get(name, "") for name in names]
        if not all(re.fullmatch("[0-9]{1,15}", word) for word in words):
            raise ValueError("it lacks the headers of a log")
        attempt, end, complete = map(int, words)
        data = answer.body(MAX_TASK_BYTES)
        if offset + len(data) != end:
            raise ValueError(f"{len(data)} bytes came instead of {end - offset}")
        return LogPiece(attempt, end, complete == 1, data)

    return read


def save(
    pieces: Iterable[bytes],
    target: Path,
    most: int,
    look: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """Write a new file and return its size and SHA-256; what was not written whole is removed.

    `look` is called with each piece and may raise, to break off. Raises ValueError when more than
    `most` bytes come, OSError.
    """
    size, digest = 0, hashlib.sha256()
    with target.open("xb") as handle:
        try:
            for piece in pieces:
                look()
                size += len(piece)
                if size > most:
                    raise ValueError(f"more than {most} bytes came")
                handle.write(piece)
                digest.update(piece)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return size, digest.hexdigest()
