"""gunicorn's worker with our answer to what is no HTTP request; its words stay out of the log."""

from __future__ import annotations

import logging
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.ggevent import GeventWorker

from rae_control.log import facts
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical

log = logging.getLogger(__name__)


class Worker(GeventWorker):  # type: ignore[misc]
    """Neither echoes nor logs a request that it could not parse: a token may be in there."""

    def notify(self) -> None:
        """Each second, from the loop that serves: not before it does, nor while it is blocked."""
        super().notify()
        if self.alive:
            self.app.tell("READY=1\nWATCHDOG=1")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: end soon. A signal's handler must not wait, a greenlet may."""
        super().handle_exit(sig, frame)
        gevent.spawn(self.app.stopping)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn refuses as everything else is answered."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        peer, cause = (addr or ("",))[0], type(exc).__name__
        log.warning("request_unreadable", extra=facts(peer=peer, cause=cause))
        status = HTTPStatus.BAD_REQUEST
        if isinstance(exc, LimitRequestLine):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(exc, LimitRequestHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        body = canonical(RaeError("invalid_request", cause).body())
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):
            util.write_nonblock(client, head.encode() + body)
