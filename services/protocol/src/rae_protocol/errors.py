"""The error table: a stable `rc`, its HTTP status, and one sentence that tells the way out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import ValidationError

TABLE: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "Malformed HTTP/1.1; check the request line and the headers."),
    "invalid_json": (400, "The body is not acceptable JSON; send UTF-8 JSON as protocol.md shows."),
    "invalid_body": (400, "A field is unknown, missing or wrong; `detail.problems` names it."),
    "invalid_query": (400, "A query parameter is unknown or wrong; look it up in protocol.md."),
    "dependency_cycle": (400, "Tasks depend on each other in a circle; break the circle."),
    "unknown_dependency": (400, "Submit the dependency before the task, or with it."),
    "unknown_input": (400, "Upload the blob first, or name an artifact that the task declares."),
    "blob_mismatch": (400, "The bytes do not have the name's SHA-256; hash them again and resend."),
    "artifact_mismatch": (400, "An artifact differs from its description; send it again."),
    "unauthorized": (401, "No valid token; send `Authorization: Bearer <token>`."),
    "bad_signature": (
        401,
        "The signature does not match; sign the exact bytes, protocol.md part 4.",
    ),
    "skew": (
        401,
        "timestamp outside allowed skew; adopt the offset of control's clock and resend.",
    ),
    "replayed_nonce": (401, "This nonce was used before; sign again with a fresh one."),
    "retry_signed": (401, "Control has just started; wait Retry-After, then sign again."),
    "register_again": (401, "The session is over; send POST /nodes/register again."),
    "superseded": (401, "A newer agent with this node_id took over; stop this one."),
    "not_enrolled": (
        401,
        "Give the node its enrolment's secret; `raectl nodes enrol NODE` prints it, also after"
        " a revoke.",
    ),
    "forbidden": (403, "The token's role does not allow this; use one with the role named here."),
    "wrong_node": (403, "The token belongs to another node; use the node's own."),
    "wrong_peer": (
        403,
        "Run the node on its own machine, or fix control's tailnet_names.",
    ),
    "not_found": (404, "The path does not exist; look it up in protocol.md."),
    "unknown_task": (404, "Check the id; a submitter's token sees its own tasks only."),
    "unknown_node": (404, "List the nodes with `raectl nodes list --all`."),
    "unknown_token": (404, "List the tokens with `raectl tokens list`."),
    "unknown_blob": (404, "Upload it with PUT; each submitter has its own blobs."),
    "unknown_artifact": (404, "Choose an artifact that the task's detail lists."),
    "unknown_lease_input": (404, "Choose one of the lease's `inputs`."),
    "method_not_allowed": (
        405,
        "The path knows other methods; use one that the `Allow` header lists.",
    ),
    "stale_lease": (
        409,
        "The lease is over; stop this attempt and drop its result.",
    ),
    "task_id_taken": (409, "This task_id belongs to another submitter; choose another."),
    "task_conflict": (409, "This task_id exists with another body; choose another."),
    "already_finished": (409, "Nothing is left to cancel; submit a new task to run it again."),
    "not_requeueable": (
        409,
        "Cancel a task that has not ended, then requeue it; after a success submit a new task.",
    ),
    "node_id_in_use": (
        409,
        "Another machine uses this node_id; stop it, or wait until it is offline.",
    ),
    "node_revoked": (409, "The node was revoked; enrol it again first."),
    "token_exists": (409, "Revoke that token, or choose another name."),
    "unknown_cursor": (
        410,
        "Control was restored and never gave this cursor; start over with `after=0`.",
    ),
    "result_dropped": (
        410,
        "Newer results took its place; fetch results sooner, or raise control's max_kept_bytes.",
    ),
    "length_required": (411, "Send a Content-Length; chunked bodies are not taken."),
    "body_too_large": (413, "The body is too large; send less, protocol.md has the limits."),
    "body_too_slow": (503, "The body came too slowly; send it again, protocol.md has the limits."),
    "unsupported_media": (415, "Send application/json, or multipart/form-data for a result."),
    "log_gap": (416, "Bytes of the log are missing before these; send it from `detail.offset` on."),
    "too_many_lanes": (429, "Too many different kinds of waiting work; wait for some to finish."),
    "queue_full": (429, "Too many tasks of this submitter are queued; wait for some to finish."),
    "blobs_full": (429, "Too many bytes of this submitter are stored; wait until tasks end."),
    "rate_limited": (429, "Too many requests; slow down."),
    "internal": (500, "Control failed; look the request_id up in control's log."),
    "disk_low": (503, "Control's disk is nearly full; free space, nothing was taken."),
    "ledger_unavailable": (503, "The ledger cannot write now; try again, nothing was taken."),
    "whois_unavailable": (503, "Control cannot ask who calls; see that its tailscaled runs."),
    "not_ready": (503, "Control is starting or stopping; try again in a second."),
}

# The web server in front says more exactly what it could not read.
_MORE_STATUSES = {"invalid_request": frozenset({414, 431})}


def comes_with(rc: str, status: int) -> bool:
    """Whether control may answer this rc with this status; a newer one has rcs of its own."""
    if rc in TABLE:
        return status == TABLE[rc][0] or status in _MORE_STATUSES.get(rc, ())
    return 400 <= status < 600


_MENDS = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EACCES: "ask as its owner or as root, or change its owner and mode",
    errno.EPERM: "ask as its owner or as root",
    errno.EROFS: "mount its disk read-write, or choose another folder",
    errno.ENOENT: "check the path, and make what is missing",
    errno.EEXIST: "choose another name, or move what is there away",
    errno.ENOTDIR: "choose a path whose folders are no files",
    errno.EISDIR: "name a file instead of the folder",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EADDRINUSE: "choose another port or path, or stop what listens there",
    errno.EIO: "see what `dmesg` says of the disk",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}


UNKNOWN_FIELD = "is not known; remove it"


def field_in_words(kind: str, said: str) -> str:
    """What pydantic found wrong with a field (its type and message), and the way out."""
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return UNKNOWN_FIELD
    if kind in {"int_type", "float_type"}:
        whole = "whole " if kind == "int_type" else ""
        return f"must be a {whole}decimal number without quotes; change it"
    said = re.sub(r"^(Input|String) should", "must", said.removeprefix("Value error, "))
    return f"{said}; change it"


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names as they stand in a sentence: sorted, the first few, `none` for nothing."""
    known = sorted(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return (", ".join(known[:limit]) + more) or "none"


def first_problem(error: ValidationError, whole: str) -> str:
    """`field: what is wrong` of the first mistake; `whole` names what has no field."""
    first = error.errors(include_url=False)[0]
    said = field_in_words(first["type"], first["msg"])
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {said}"


def in_words(error: OSError) -> str:
    """What the system said, and the way out."""
    said = error.strerror or str(error) or type(error).__name__
    return f"{said}; {_MENDS.get(error.errno or 0, 'check the path, its owner and its disk')}"


class RaeError(Exception):
    """Base of every error in the protocol.

    `rc` is stable, `status` comes from the table, the text is one sentence with the way out.
    """

    def __init__(
        self,
        rc: str,
        cause: str | None = None,
        *,
        retry_after_s: float | None = None,
        **detail: Any,
    ) -> None:
        self.rc = rc
        self.status, self.way_out = TABLE.get(rc, (500, "See the log."))
        self.cause = cause
        self.detail = detail
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """Cause and way out."""
        return f"{self.cause.rstrip('.')}. {self.way_out}" if self.cause else self.way_out

    def body(self) -> dict[str, Any]:
        """The error as it goes over the wire."""
        return {"rc": self.rc, "message": self.message, "detail": self.detail}


class RemoteError(RaeError):
    """An error that the other side answered with; keeps its words."""

    def __init__(
        self,
        rc: str,
        message: str,
        status: int,
        detail: dict[str, Any],
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(rc, retry_after_s=retry_after_s)
        self.status = status
        self.detail = detail
        self._message = message
        self.args = (message,)

    @property
    def message(self) -> str:
        """The other side's sentence."""
        return getattr(self, "_message", self.way_out)


# Why no answer of control came.
Reason = Literal[
    "refused", "unknown_name", "timeout", "no_route", "tls", "certificate", "ca_file",
    "broken_off", "foreign",
]  # fmt: skip


class Unreachable(RaeError):
    """Control did not answer: the connection was refused, timed out or broke off, or something in
    between answered instead."""

    rc = "unreachable"

    def __init__(
        self,
        cause: str,
        *,
        unsent: bool = False,
        reason: Reason = "broken_off",
        way_out: str = "Check the URL and that control runs.",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__("unreachable", cause, retry_after_s=retry_after_s)
        self.reason: Reason = reason
        self.unsent = unsent  # not even a connection came about: control has done nothing
        self.way_out = way_out
        self.args = (self.message,)


class EnvelopeError(RaeError):
    """A task envelope that a node must not accept."""

    def __init__(self, cause: str) -> None:
        super().__init__("bad_envelope", cause)
        self.way_out = "The task was not accepted; check the node's enrolment and both clocks."
        self.args = (self.message,)
