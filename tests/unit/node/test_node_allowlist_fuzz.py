"""Argument lists of every shipped entry, mutated, against a naive reading of the rule (C5), and
against what the programs' manuals say that such a list means."""

from __future__ import annotations

import os
import posixpath
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rae_node.package import DATA
from rae_node.runners.cli import AllowFolders
from rae_protocol.allowlist import Entry, refusal

ENTRIES = {entry.name: entry for entry in AllowFolders([DATA / "allowlist.d"]).entries}
EXAMPLES = int(os.environ.get("RAE_FUZZ_EXAMPLES", "60"))
MARKS = "=,;|"
QUOTES = "'\"\\"
PROTOCOL = string.ascii_letters + string.digits + "+-."
HOSTILE = [
    "-", "--", "---", "-o", "-x", "-i", "-f", "-c", "-r", "-S", "-T", "-e", "--stdo", "--help",
    "-dc",
    "--files0-from=a", "--compress-program=sh", "-f.mp4", "--output=a", "@a", "+5f", "+1", "a",
    "a.mp4",
    "/etc/passwd", "/", "//", "../a", "..", "a/..", "./..", "a/../../b.mp4", "~", "~/a",
    "~root/.x", "",
    " ", " /a", "\t/a", "a\nb", "a\n", "a\x00.mp4", "a\x1b", "a=/b", "a,/b", "a|/b", "a;/b", "a:/b",
    "a,..", "x=../b", "--x=/a", "--x=~", "-I/a", "-C..", "http://h/a.mp4", "file:a.mp4",
    "concat:a|b.mp4",
    "subfile,,start,0,end,0,,:/a.mp4", "crypto+file:a.mp4", "data:a.mp4", "pipe:.mp4", "é:~b",
    ":/a", "é:..", "a='/b", "a=\\/b",
    "é:'/b", "'..'", "x=\"file:a", "'~",
    "subfile,,start,0,end,9,,:a.mp4",
    "async:a.mp4",
    "a=http:b", "|file:a.mp4", "://", "a%03d.mp4", "%d.mp4", "%d/a.mp4", "output.mp4", "-d/",
    "-t~", ":",
    "-c:v", "copy", "\udcff", "\uff41.mp4", "\ufb01le:a.mp4", "\uff0e\uff0e/a", "\u2215etc",
    "\u2028.mp4",
]  # fmt: skip


# The rule again: letter by letter, and every split of the arguments tried.


def forbidden(arg: str) -> bool:
    """Whether no pattern may let an argument through."""
    if any(c != "\t" and unicodedata.category(c) in {"Cc", "Cs"} for c in arg):
        return True
    if arg[:1] == "-":
        head = arg.split("=", maxsplit=1)[0]
        if "/" in head or "~" in head or ".." in head:
            return True
    if "://" in arg or many(arg):
        return True
    starts = [arg, arg.lstrip()] + [arg[i + 1 :] for i, c in enumerate(arg) if c in MARKS]
    starts += [value.lstrip(QUOTES) for value in starts]
    for value in starts:
        if value[:8] == "subfile,":
            return True
        letters = 0
        while letters < len(value) and value[letters] in PROTOCOL:
            letters += 1
        if letters and value[:1] != "-" and value[letters : letters + 1] == ":":
            return True
    starts += [arg[i + 1 :].lstrip(QUOTES) for i, c in enumerate(arg) if c == ":"]
    if any(value[:1] in {"/", "~"} for value in starts if value):
        return True
    folders = arg.translate({ord(mark): "/" for mark in MARKS + ":" + QUOTES}).split("/")
    return ".." in {*folders, folders[0].lstrip()}


def many(arg: str) -> bool:
    """Whether it is such as `name%03d.mp4`."""
    name = arg.rsplit("/", maxsplit=1)[-1]
    stem, dot, end = name.rpartition(".")
    if not dot or not end or any(c not in string.ascii_letters + string.digits for c in end):
        return False
    return any(part.lstrip(string.digits)[:1] == "d" for part in stem.split("%")[1:])


def reads(patterns: Sequence[Sequence[str]], args: Sequence[str]) -> bool:
    """Whether some split of the arguments fits the patterns."""
    if not args:
        return True
    for item in patterns:
        if len(args) >= len(item):
            halves = [takes(item[i], args[i]) for i in range(len(item))]
            if all(halves) and reads(patterns, args[len(item) :]):
                return True
    return False


def takes(pattern: str, arg: str) -> bool:
    if not re.fullmatch(pattern, arg):
        return False
    if arg[:1] != "-":
        return True
    return not re.fullmatch(pattern, "a" + arg[1:]) and not re.fullmatch(pattern, "Z" + arg[1:])


def allowed(entry: Entry, args: Sequence[str]) -> bool:
    size = len("".join(args).encode(errors="surrogatepass"))
    if size > entry.max_total_args_len:
        return False
    return not any(forbidden(arg) for arg in args) and reads(entry.args, args)


# What the manuals say: flags without a value, flags with one, with one that is glued on only, and
# long options, of each program, as far as they do no harm.

SUMS = ("btz", "", "", "binary text tag zero")
HARMLESS: dict[str, tuple[str, str, str, str]] = {
    "gzip": ("cdfknqtlv123456789", "", "",
             "stdout decompress keep force best fast no-name test list"),
    "bzip2": ("cdfkqtvz123456789", "", "",
              "stdout decompress compress keep force best fast test"),
    "xz": ("cdefkqtvz0123456789", "", "T",
           "stdout decompress compress keep force extreme test"),
    "zstd": ("cdfkqtvz0123456789", "o", "T",
             "stdout decompress compress keep force test no-progress"),
    "sha256sum": SUMS, "sha512sum": SUMS, "sha1sum": SUMS, "md5sum": SUMS,
    "b2sum": ("btz", "l", "", "binary text tag zero"),
    "cksum": ("", "", "", ""), "tac": ("", "", "", ""),
    "wc": ("clmwL", "", "", "bytes chars lines words max-line-length"),
    "sort": ("bdfgiMhnrRVsucmz", "kt", "", ""),
    "uniq": ("cdDuiz", "fsw", "", ""),
    "comm": ("123z", "", "", ""),
    "head": ("qvz0123456789", "nc", "", ""),
    "tail": ("qvz0123456789", "nc", "", ""),
    "cut": ("snz", "dbcf", "", "complement only-delimited"),
    "cat": ("AbeEnstTuv", "", "", ""),
    "nl": ("", "bw", "", ""),
    "od": ("abcdfilosvx", "AtjN", "w", ""),
    "cmp": ("bls", "n", "", ""),
    "base64": ("di", "w", "", "decode ignore-garbage"),
    "grep": ("EFGivnwxchHlLqsaob", "mABCe", "", "color=never"),
    "echo": ("neE", "", "", ""), "sleep": ("", "", "", ""),
    "true": ("", "", "", ""), "false": ("", "", "", ""),
}  # fmt: skip
FFMPEG = {"ffmpeg": {"-y": 0, "-i": 1, "-c:v": 1, "-c:a": 1, "-b:v": 1}, "ffprobe": {
    "-hide_banner": 0, "-v": 1, "-show_format": 0, "-show_streams": 0, "-of": 1, "-print_format": 1,
}}  # fmt: skip


def operands(name: str, args: Sequence[str]) -> Iterator[str]:
    """The files that a program takes from its arguments; asserts that it sees harmless options."""
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if name in FFMPEG and word[:1] == "-":
            assert word in FFMPEG[name], "an option of ffmpeg"
            values = [rest.pop(0) for _ in range(FFMPEG[name][word])]
            yield from values if word == "-i" else []
        elif word[:2] == "--":
            assert word[2:] in HARMLESS[name][3].split(), "a long option"
        elif word[:1] == "-":
            assert word != "-", "stdin"
            rest = cluster(name, word, rest)
        else:
            assert name not in {"tail", "sort", "uniq", "od"} or word[:1] != "+", "an old option"
            yield word
    if name == "ffmpeg":
        assert "-protocol_whitelist" not in args


def cluster(name: str, word: str, rest: list[str]) -> list[str]:
    """The words after a cluster of short options, less the value that it takes."""
    flags, valued, glued, _ = HARMLESS[name]
    for at, flag in enumerate(word[1:], start=1):
        if flag in valued:
            assert word[at + 1 :] or rest, "a value is there"
            return rest if word[at + 1 :] else rest[1:]
        if flag in glued:
            return rest
        assert flag in flags, f"-{flag}"
    return rest


def protocol(name: str) -> str:
    """What ffmpeg opens a name with, as `url_find_protocol` in its avio.c decides."""
    length = 0
    while length < len(name) and name[length] in PROTOCOL:
        length += 1
    if name[length : length + 1] == ":":
        return name[:length]
    if name.startswith("subfile,") and ":" in name:
        return "subfile"
    return "fd" if name == "-" else "file"


def inside(name: str) -> bool:
    """Whether a name means something in the workspace, and its pieces, too."""
    pieces = [name, *re.split("[=,;|:]", name)]
    ends = [posixpath.normpath(posixpath.join("/w/work", piece)) for piece in pieces]
    return all(end == "/w/work" or end.startswith("/w/work/") for end in ends)


# Lists of arguments


def mutated(arg: str, at: int, piece: str, how: str) -> str:
    at = at % (len(arg) + 1)
    if how == "insert":
        return arg[:at] + piece + arg[at:]
    if how == "replace":
        return arg[:at] + piece + arg[at + len(piece) :]
    return arg[:at] + arg[at + 1 :]


def argument(pattern: str) -> st.SearchStrategy[str]:
    """What a pattern matches, often with something of the hostile in it."""
    fine = st.from_regex(pattern, fullmatch=True)
    pieces = st.sampled_from([*HOSTILE, *"-=,;|:/.~+@%\\\"'`$ \t"])
    how = st.sampled_from(["insert", "replace", "delete"])
    return fine | fine | st.builds(mutated, fine, st.integers(0, 40), pieces, how)


def lists(entry: Entry) -> st.SearchStrategy[list[str]]:
    items = [st.tuples(*map(argument, item)) for item in entry.args]
    items += [st.tuples(st.sampled_from(HOSTILE))]
    return st.lists(st.one_of(items), max_size=5).map(lambda found: [*chain(*found)])


@pytest.mark.parametrize("name", ENTRIES)
def test_no_list_of_arguments_leaves_the_workspace_reads_a_url_or_adds_an_option(name: str) -> None:
    """Contract: C5."""
    entry, passed = ENTRIES[name], 0

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(lists(entry))
    def fuzz(args: list[str]) -> None:
        nonlocal passed
        ours = refusal(entry, args) is None
        assert ours == allowed(entry, args)
        if not ours:
            return
        passed += bool(args)
        for file in operands(name, args):
            assert inside(file)
            assert protocol(file) in {"file", ""}
        for arg in args:
            assert "://" not in arg and "\n" not in arg and "\0" not in arg
            if arg.startswith("-"):
                assert "/" not in arg.partition("=")[0]

    fuzz()
    assert passed or not entry.args


@pytest.mark.parametrize("name", ENTRIES)
def test_each_hostile_word_and_option_gets_the_same_verdict_at_each_place(name: str) -> None:
    """Contract: C5."""
    entry = ENTRIES[name]
    firsts = ["a", "-k", "-i", "-e", "-n", *(item[0] for item in entry.args)]
    words = HOSTILE + [f"-{c}{end}" for c in string.printable for end in ("", "5", "vn")]
    places = [[word] for word in words] + [[word, "a"] for word in words]
    for args in places + [[first, word] for first in firsts for word in words]:
        ours = refusal(entry, args) is None
        assert ours == allowed(entry, args)
        if ours:
            assert all(inside(file) for file in operands(name, args))


def test_every_shipped_entry_has_its_manual() -> None:
    assert set(ENTRIES) == set(HARMLESS) | set(FFMPEG)
