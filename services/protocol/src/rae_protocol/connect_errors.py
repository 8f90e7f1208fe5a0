"""Why an HTTP request got no answer: refused, unknown name, timeout, certificate or another cause.

`requests` and urllib3 wrap the cause several times; it is looked for in the chain of exceptions.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import requests
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from rae_protocol.errors import Reason

_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_DATES = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_NAMES = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_ISSUER = frozenset({2, 18, 19, 20, 21})  # self-signed, or an issuer that is not known
_NAME_CA = (
    "Name the PEM file of its CA: `ca_file` in config.yaml, `raectl --ca-file`, or RAE_CA_FILE "
    "(for all programs SSL_CERT_FILE)."
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`what` follows the URL or host in a sentence; `way_out` is a sentence of its own."""

    reason: Reason
    what: str
    way_out: str


def diagnose(error: BaseException) -> Diagnosis:
    """Find the cause of a failed request."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause)
    for cause in causes:
        found = _known(cause)
        if found is not None:
            return found
    return Diagnosis(
        "broken_off", f"did not answer ({type(error).__name__})",
        "Check the URL and that control runs.",
    )  # fmt: skip


def _known(cause: BaseException) -> Diagnosis | None:
    if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
        return Diagnosis(
            "tls", "did not answer with TLS", "Write http:// in the URL, or check its port."
        )
    if isinstance(cause, socket.gaierror | NameResolutionError):
        return Diagnosis(
            "unknown_name", "did not answer: no address is known for that name",
            "Check the name in the URL and this machine's DNS.",
        )  # fmt: skip
    if isinstance(cause, ConnectionRefusedError):
        return Diagnosis(
            "refused", "did not answer: the connection was refused",
            "Check the URL and its port, and that control runs.",
        )  # fmt: skip
    if isinstance(cause, ConnectTimeoutError) and not isinstance(cause, NewConnectionError):
        return Diagnosis(
            "timeout", "did not answer: connecting timed out",
            "Check the address, that the host is on, and the firewalls in between.",
        )  # fmt: skip
    if isinstance(cause, TimeoutError | requests.ReadTimeout):
        return Diagnosis(
            "timeout", "did not answer in time",
            "Check that control runs and is not overloaded, then try again.",
        )  # fmt: skip
    if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
        return Diagnosis(
            "no_route", "did not answer: no route leads there",
            "Check the address and this machine's network.",
        )  # fmt: skip
    return None


def _certificate(error: ssl.SSLCertVerificationError) -> Diagnosis:
    detail, code = error.verify_message.rstrip("."), error.verify_code
    if code in _DATES:
        what = "expired" if code == 10 else "not yet valid"
        way = "Renew the certificate on the server; if it is right, set this machine's clock."
        return Diagnosis("certificate", f"has a certificate that is {what} ({detail})", way)
    if code in _NAMES:
        what = "has a certificate for another host name"
        way = "Use a name in the URL that the certificate has, or add this one to it."
        return Diagnosis("certificate", f"{what} ({detail})", way)
    if code in _ISSUER:
        what = "has a certificate of a CA that is not trusted here"
        return Diagnosis("certificate", f"{what} ({detail})", _NAME_CA)
    return Diagnosis("certificate", f"has a certificate that is not accepted ({detail})", _NAME_CA)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it, each once, the outermost first."""
    seen, waiting = set[int](), [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
        waiting += [found for found in inner if isinstance(found, BaseException)]
