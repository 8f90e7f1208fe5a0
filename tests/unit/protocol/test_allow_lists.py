"""The rule of allow-lists lets through what an entry names, and nothing outside (C5)."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rae_protocol.allowlist import Entry, Refusal, leaves_workspace, refusal, select
from tests.messages import faults

FFMPEG = Entry(
    path="/usr/bin/ffmpeg",
    args=[
        ["-y"], ["-i", r".+\.(mp4|wav|mkv)"], ["-c:v", "(libx264|copy)"], ["-c:a", "(aac|copy)"],
        ["-b:v", "[1-9][0-9]{2,5}k"], [r"output\.(mp4|mkv)"],
    ],
    max_total_args_len=4096, max_runtime_s=7200, max_output_mb=5000,
)  # fmt: skip
ANYTHING = Entry(path="/bin/sh", args=[["(?s:.*)"]])


def said(entry: Entry, args: str | list[str]) -> Refusal:
    """Why an entry refuses; the words are ones that a person can use."""
    found = refusal(entry, args.split(" ") if isinstance(args, str) else args)
    assert found is not None, f"{args} pass"
    assert faults(found.message) == []
    return found


@pytest.mark.parametrize(
    "args",
    [
        "-y -i input1.mp4 -c:v libx264 output.mp4", "-i sub/a.b.wav output.mkv", "output.mp4",
        "-i a.mp4 -i b.wav -c:v copy -c:a aac -b:v 2500k -y output.mp4 output.mkv",
        "-i ./-x.mp4 output.mp4", "-b:v 100k", "-b:v 999999k", "-i ünï.mp4 output.mp4",
    ],
)  # fmt: skip
def test_ffmpegs_entry_accepts_what_it_names(args: str) -> None:
    """Contract: C5."""
    assert refusal(FFMPEG, args.split()) is None


@pytest.mark.parametrize(
    ("args", "argument", "words"),
    [
        ("-y -i input1.exe output.mp4", 3, "after '-i'; write what matches .+\\.(mp4"),
        ("-y -i input1.mp4 -c:v h264 output.mp4", 5, "after '-c:v'; write what matches (libx264"),
        ("-i input1.mp4 other.mp4", 3, "write what matches -y | -i followed by .+"),
        ("-b:v 99k", 2, "[1-9]"), ("-b:v 9999999k", 2, "[1-9]"), ("-b:v 0100k", 2, "[1-9]"),
        ("-y -i", 2, "add one after it that matches .+"), ("-c:v", 1, "(libx264|copy)"),
        ("-i a.MP4", 2, "after '-i'"), ("output.mp4x", 1, "is not allowed"),
        ("xoutput.mp4", 1, "is not allowed"), ("-y=1", 1, "is not allowed"),
        ("a.mp4", 1, "is not allowed"), ("--", 1, "is not allowed"), ("", 1, "is not allowed"),
        ("-i a.mp4 -f hls output.mp4", 3, "is not allowed"), ("-i -y", 2, "after '-i'"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_argument_and_the_patterns_that_were_tried(
    args: str, argument: int, words: str
) -> None:
    """Contract: C5."""
    found = said(FFMPEG, args)
    assert (found.argument, found.text) == (argument, args.split(" ")[argument - 1])
    assert words in found.message and f"Argument {argument} of ffmpeg" in found.message
    firsts = tuple(item[0] for item in FFMPEG.args)
    assert found.patterns in {firsts, *((item[1],) for item in FFMPEG.args if len(item) == 2)}


@pytest.mark.parametrize(
    "name",
    [
        "concat:a.mp4|/etc/passwd.mp4", "concat:a.mp4|b.mp4", "concatf:list.mp4", "file:a.mp4",
        "file:/etc/x.mp4", "file%3A/x.mp4:", "subfile,,start,0,end,0,,:/etc/passwd.mp4",
        "subfile,,start,0,end,9,,:a.mp4", "subfile,,start,0,x,a/b,,:a.mp4", "async:a.mp4",
        "async:file:a.mp4", "cache:a.mp4", "crypto:a.mp4", "crypto+file:a.mp4",
        "data:video/mp4;a.mp4",
        "pipe:0.mp4", "pipe:.mp4", "fd:3.mp4", "unix:a.mp4", "tee:a.mp4|b.mp4",
        "hls+http://h/a.mp4",
        "http://h/a.mp4", "HTTPS://h/a.mp4", "rtmp://h/a.mp4", "tcp:h:1.mp4", "2x:a.mp4",
        "ftp:a.mp4",
        "movie=/etc/x.mp4", "movie=http://h/x.mp4", "a=file:b.mp4", "a;file:b.mp4", " file:a.mp4",
        "a.mp4|/etc/passwd.mp4", "a.mp4|http://h/b.mp4", "a.mp4,/etc/b.mp4", "a.mp4;../b.mp4",
        "/etc/passwd.mp4", "//etc/a.mp4", " /etc/a.mp4", "../a.mp4", "./../a.mp4", "a/../../b.mp4",
        "a/..//.mp4", "..", "~/a.mp4", "~root/a.mp4", "-f.mp4", "-.mp4", "-i.mp4", "--help.mp4",
        "-o/x.mp4",
        "-filter_complex_script.mp4", "input%03d.mp4", "input%1d.mp4", "in%5d.mkv", "d/%03d-x.wav",
        "a\n.mp4", "a.mp4\n", "\na.mp4", "a\x00.mp4", "a.mp4\x00", "a\r.mp4", "a\x1b[1m.mp4",
        "a\x85.mp4", "a\udcff.mp4", "a.mp4 ", "a.mp4/", "output.mp4/../../x.mp4",
    ],
)  # fmt: skip
def test_no_input_of_ffmpeg_is_a_protocol_a_url_an_option_or_outside(name: str) -> None:
    """Contract: C5."""
    found = said(FFMPEG, ["-i", name, "output.mp4"])
    assert found.argument == 2 and found.text == name


@pytest.mark.parametrize(
    "arg",
    [
        "/etc/passwd", "../a", "a/../../b", "~/x", "~root", "http://x/a.mp4", "concat:a|b",
        "file:a.mp4", "--out=/etc/x", "--out=../x", "--a=b=~/x", "-o/etc/x", "-o~x", "-C..", "a\nb",
        "a\x00b", "-I../x", "--exec=..", "x=..", "x,..", "movie='/a'", "movie=\\/a", "x=\"..\"",
        "x='file:a'", "--list=a,/b", "--u=http:x",
        "see http://x",
    ],
)  # fmt: skip
def test_arguments_that_could_leave_the_workspace_are_refused_whatever_a_pattern_says(
    arg: str,
) -> None:
    assert said(ANYTHING, [arg]).argument == 1


@pytest.mark.parametrize(
    "arg",
    ["a.txt", "d/a.txt", "-c:v", "--opt=a/b", "a..b", "-", "", "a=b", ":", "...", "%", "+%Y-%m-%d",
     "50%done.txt", "d/100%dry.csv", "%d/a.txt", "50%d", "1,3-4", "a b", "-d:", "x~", "a.mp4"],
)  # fmt: skip
def test_arguments_inside_the_workspace_pass(arg: str) -> None:
    assert leaves_workspace(arg) is None


@pytest.mark.parametrize(
    "arg",
    ["a%d.txt", "a%03d.txt", "a%03done.txt", "%d-a.txt", "50%done%d.txt", "50%done%3d.txt",
     "50%done.png", "50%done.mp4", "50%done.txt.png", "50%done.TXT", "%d%done.txt", "%%d.jpg"],
)  # fmt: skip
def test_a_pattern_of_ffmpeg_that_stands_for_many_files_is_refused(arg: str) -> None:
    assert leaves_workspace(arg) == "stands for many files"


@given(st.text(max_size=20), st.text(max_size=10))
def test_no_spelling_of_an_absolute_or_parent_path_passes(tail: str, option: str) -> None:
    for arg in (f"/{tail}", f"../{tail}", f"--{option}=/{tail}", f"x/../{tail}"):
        assert leaves_workspace(arg) is not None


@pytest.mark.parametrize(
    ("pattern", "option", "passes"),
    [
        (".+", "-x", False), ("[a-z-]+", "-x", False), ("[A-Z-]+", "-X", False),
        ("(?s:.*)", "-", False),
        ("-?x+", "-x", True),
        ("-[a-z]+", "-x", True), ("[+-]?[0-9]+", "-5", True), ("[0-9,-]+", "-3", True),
        ("-x|.+", "-x", False), ("--(a|b)", "--a", True), (r"\S+", "--a", False),
    ],
)  # fmt: skip
def test_an_option_passes_only_where_a_pattern_means_one(
    pattern: str, option: str, passes: bool
) -> None:
    for entry, args in (
        (Entry(path="/bin/x", args=[[pattern]]), [option]),
        (Entry(path="/bin/x", args=[["-v", pattern]]), ["-v", option]),
    ):
        assert (refusal(entry, args) is None) == passes
        if not passes:
            assert f"write a file's name as './{option}'" in said(entry, args).message


def test_the_cap_on_all_arguments_counts_bytes() -> None:
    assert refusal(FFMPEG, ["-i", "a" * 4090 + ".mp4"]) is None
    assert (
        "have 4097 bytes; write at most 4096" in said(FFMPEG, ["-i", "a" * 4091 + ".mp4"]).message
    )
    assert "have 4098 bytes" in said(FFMPEG, ["-i", "ä" * 2046 + ".mp4"]).message


@pytest.mark.parametrize(
    "part", ["%d", "%d.", "%1d.", "%da.txt", "a/", "=", "|'", "../", ":", "a:"]
)
def test_the_longest_argument_is_looked_at_in_a_moment(part: str) -> None:
    began = time.process_time()
    leaves_workspace(part * (128 * 1024 // len(part)) + "!")
    assert time.process_time() - began < 2


def test_of_several_entries_the_nearest_says_why() -> None:
    other = Entry(path="/opt/bin/ffmpeg", args=[["-version"]])
    for entries in ([FFMPEG, other], [other, FFMPEG]):
        found = select(entries, "ffmpeg", ["-i", "a.exe"])
        assert isinstance(found, Refusal) and found.argument == 2
    assert select([FFMPEG, other], "ffmpeg", ["-version"]) == 1
    assert select([FFMPEG, other], "/opt/bin/ffmpeg", ["-y"]) != 0
    missing = select([FFMPEG], "rm", [])
    assert missing == Refusal("'rm' is not on the allow-list; choose from ffmpeg")


SLOW = [
    "(a+)+b", "(a*)*b", "(a|a)*b", "(a|ab)+c", "(a?){40}a{40}", "(.*a){12}", "(?:x+y?)+z",
    "((a+)+)+",
    "(a{1,9})*b", ".*.*.*.*x", "[a-z]+[a-z]+[a-z]+x", "(?=(a+)+b).*", "(a)?(?(1)(b+)+|c)",
    r"(\w+\s?)*x",
]  # fmt: skip
QUICK = [
    r".+\.(mp4|wav|mkv)", "(?!-).+", "-?[0-9]+[bkKMG]?", "(?:ab)*", r"([0-9]{1,3}\.){3}[0-9]{1,3}",
    r"[a-z]+:[a-z]+", "[a-z]{1,64}-[a-z]{1,64}-[a-z]{1,64}", r"(?:[^=]+=)?.+", "(a)?(?(1)b|c)",
    r"(a)\1+",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_could_stop_the_agent_is_refused_when_it_is_read(pattern: str) -> None:
    re.compile(pattern)
    with pytest.raises(ValidationError, match="could take too long"):
        Entry(path="/bin/x", args=[["-o", pattern]])


@pytest.mark.parametrize("pattern", QUICK)
def test_a_usual_pattern_is_taken_and_quick(pattern: str) -> None:
    entry = Entry(path="/bin/x", args=[[pattern]])
    began = time.process_time()
    for letter in "a0 .:-=":
        refusal(entry, [letter * 4095 + "!"])
    assert time.process_time() - began < 20  # a stuck one takes years


@pytest.mark.parametrize(
    "body",
    [
        {"path": "sh"}, {"path": "/"}, {"path": "/bin/"}, {"path": "/a\nb"}, {},
        {"path": "/x", "args": "y"},
        {"path": "/x", "args": [["("]]}, {"path": "/x", "args": [[]]},
        {"path": "/x", "args": [["a"] * 3]},
        {"path": "/x", "args": [[5]]}, {"path": "/x", "args": ["a"]}, {"path": "/x", "shell": True},
        {"path": "/x", "max_total_args_len": 0}, {"path": "/x", "max_total_args_len": "9"},
        {"path": "/x", "max_runtime_s": -1}, {"path": "/x", "max_runtime_s": float("inf")},
        {"path": "/x", "max_runtime_s": True}, {"path": "/x", "max_output_mb": 0},
        {"path": "/x", "max_total_args_len": True}, {"path": "/x", "max_output_mb": "5000"},
    ],
)  # fmt: skip
def test_an_entry_that_is_wrong_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Entry.model_validate(body)
