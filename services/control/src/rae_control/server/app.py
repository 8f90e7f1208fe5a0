"""The Flask application: the paths at the root and under /api/v1, and one shape for every error."""

from __future__ import annotations

import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from rae_control import wire
from rae_control.api.routes import add_routes
from rae_control.core.gate import Budget
from rae_control.core.limits import Bucket
from rae_control.storage.files import PIECE
from rae_protocol.errors import RaeError
from rae_protocol.log import facts
from rae_protocol.models import canonical

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

log = logging.getLogger(__name__)


def create_app(mesh: Mesh) -> Flask:
    """The WSGI application over a mesh."""
    app = Flask("rae_control", static_folder=None)
    # Paths are taken as they are: a redirect would lose a POST's body and a signature's target.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    add_routes(app, mesh)
    app.register_error_handler(RaeError, partial(_known, mesh, Bucket(1.0, 50.0, 50.0, 0.0)))
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unknown)
    app.extensions["bodies"] = wire.Bodies()
    app.after_request(wire.leave_unread)
    app.after_request(partial(_count, mesh))
    app.after_request(_no_store)
    app.after_request(partial(wire.sign_answer, mesh))
    app.after_request(_hold)
    app.teardown_request(wire.close_streams)
    return app


def error_response(error: RaeError) -> Response:
    """An error as it goes over the wire."""
    response = Response(canonical(error.body()), error.status, mimetype="application/json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="rae"'
    return response


def _known(mesh: Mesh, bucket: Bucket, error: RaeError) -> Response:
    # A refused caller is logged, but not at each of his requests.
    if error.status in {401, 403, 429, 503} and not bucket.take(mesh.clock.boot()):
        why = error.__cause__ if isinstance(error.__cause__, RaeError) else error.cause
        log.warning(
            "request_refused",
            extra=facts(rc=error.rc, method=request.method, path=request.path[:200],
                        peer=request.remote_addr, cause=why and str(why)),
        )  # fmt: skip
    return error_response(error)


def _http(error: HTTPException) -> Response:
    rc = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.code or 0)
    if rc is None:
        rc = "invalid_body" if 400 <= (error.code or 500) < 500 else "internal"
    response = error_response(RaeError(rc, None if rc in {"not_found"} else error.description))
    if rc == "method_not_allowed":
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers["Allow"] = value
    return response


def _unknown(error: Exception) -> Response:
    request_id = secrets.token_hex(6)
    log.error("request_failed", exc_info=error, extra=facts(request_id=request_id))
    return error_response(RaeError("internal", request_id=request_id))


def _count(mesh: Mesh, response: Response) -> Response:
    # The rule, not the path: there are as many as there are operations.
    rule = "unknown" if request.url_rule is None else request.url_rule.rule
    method = request.method if request.url_rule is not None else ""
    operation = f"{method} {rule.removeprefix('/api/v1')}".strip()
    mesh.metrics.answered(operation, response.status_code)
    return response


def _hold(response: Response) -> Response:
    # What an answer holds until it is read counts to its caller: of a blob, a piece at a time.
    size, who = response.content_length or 0, g.get("who")
    if "ETag" in response.headers:
        size = min(size, PIECE)
    if who is None or size <= wire.DECODE_HERE_MAX:
        return response
    answers: Budget = current_app.extensions["bodies"].answers
    if not answers.take(who, size):
        response.close()
        cause = "too many answers to this caller are not read yet"
        return error_response(RaeError("rate_limited", cause, retry_after_s=1))
    response.call_on_close(partial(answers.give, who, size))
    return response


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
