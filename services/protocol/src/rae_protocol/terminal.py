"""What the programs print: nothing steers a terminal, and a lost output ends in one sentence."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rae_protocol.errors import in_words

CLOSED_PIPE = 128 + 13  # as the shell says of a program that SIGPIPE has ended
INTERRUPTED = 128 + 2


class OutputLost(Exception):
    """Standard output takes no more; its cause is the OSError."""


def say(text: str) -> None:
    """A text for people on standard output. Raises OutputLost.

    Control characters become escapes, all but line breaks and tabs.
    """
    _put(escaped(text) + "\n")


def say_json(value: Any) -> None:
    """A JSON document, for programs and for people. Raises OutputLost."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    _put(_spelt(text, lambda sign: "\\u007f" if sign == "\x7f" else json.dumps(sign)[1:-1]) + "\n")


def raw_writer() -> Callable[[bytes], None]:
    """Writes pieces of a program's output: as they are; to a terminal as escaped text.

    The function raises OutputLost.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(piece: bytes) -> None:
        if sys.stdout is None:
            return
        if sys.stdout.isatty():  # a progress bar goes back to the start of its line
            _put(escaped(decoder.decode(piece).replace("\r\n", "\n").replace("\r", "\n")))
            return
        try:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise OutputLost from error

    return write


def complain(program: str, sentence: str) -> None:
    """An error sentence on standard error; where that takes nothing, the exit code must do."""
    try:
        print(escaped(f"{program}: {sentence}"), file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def escaped(text: str) -> str:
    """Text that cannot steer a terminal; line breaks and tabs stay."""
    return _spelt(text, lambda sign: sign.encode("unicode_escape").decode("ascii"))


def run_program(program: str, work: Callable[[], int]) -> int:
    """Do the work and return its exit code.

    CLOSED_PIPE when the reader of the output has closed it, 1 with a sentence when it cannot be
    written (a full disk), INTERRUPTED after Ctrl-C. Letters that a terminal lacks are printed as
    escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = work()
        except SystemExit:  # argparse, also after --help
            _put("")
            raise
        _put("")  # what is still to be written; at its exit, Python could only fail with 120
        return code
    except OutputLost as lost:
        return _lost(program, lost.__cause__)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if sys.stderr is not None:
            try:
                sys.stderr.flush()
            except OSError:
                _silence(sys.stderr)


def _lost(program: str, cause: BaseException | None) -> int:
    _silence(sys.stdout)
    if isinstance(cause, BrokenPipeError):
        return CLOSED_PIPE
    if isinstance(cause, OSError):
        why = "the disk is full" if cause.errno == errno.ENOSPC else in_words(cause)
        complain(program, f"the output cannot be written: {why}; write it elsewhere")
    return 1


def _put(text: str) -> None:
    if sys.stdout is None:  # closed by who started us
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost from error


def _spelt(text: str, spell: Callable[[str], str]) -> str:
    """The text with `spell` in place of each character that is not for printing."""
    return "\n".join(
        line
        if line.isprintable()
        else "".join(c if c.isprintable() or c == "\t" else spell(c) for c in line)
        for line in text.split("\n")
    )


def _silence(stream: TextIO | None) -> None:
    """Let what waits in the stream go nowhere: Python writes it once more at its exit."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
