"""The certificate of the TLS listener: checked at the start, replaced while control serves."""

from __future__ import annotations

import logging
import ssl
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from rae_control.config import ControlConfig
from rae_control.errors import ConfigError
from rae_protocol.errors import in_words
from rae_protocol.log import facts

log = logging.getLogger(__name__)

# Of TLS 1.2: forward secrecy and authenticated encryption only. Those of TLS 1.3 all have both.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# Written by the group, or anything for others. A credential of systemd may be read by the group.
_OPEN_MODE = 0o027


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate, with the chain below its CA, and of its key."""

    cert: Path
    key: Path

    @classmethod
    def of(cls, config: ControlConfig) -> Pair | None:
        """The pair that the settings name, if any."""
        if config.tls_cert_file is None or config.tls_key_file is None:
            return None
        return cls(Path(config.tls_cert_file), Path(config.tls_key_file))

    def context(self) -> ssl.SSLContext:
        """What new connections are given. Raises ConfigError."""
        # Looked up late: in gunicorn's worker it is gevent's.
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers(CIPHERS)
        # Alone, for every client has it: of others a stranger could choose the most expensive one.
        made.set_ecdh_curve("prime256v1")
        made.options |= ssl.OP_NO_RENEGOTIATION
        made.set_alpn_protocols(["http/1.1"])
        try:
            mode = stat.S_IMODE(self.key.stat().st_mode)
            # No password: OpenSSL would ask for it on the terminal.
            made.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            raise ConfigError(
                f"{self.cert} and {self.key} are no certificate and its key"
                f" ({error.reason or 'no PEM'}); write PEM files that belong together, the key"
                " without a password"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self.cert} or {self.key} cannot be read: {in_words(error)}; set tls_cert_file"
                " and tls_key_file to files that control's user can read"
            ) from error
        if mode & _OPEN_MODE:
            raise ConfigError(
                f"other users can read or replace the key {self.key} (mode {mode:04o}); run"
                f" `chmod go-w,o= {self.key}`, and renew the key if others have had access"
            )
        return made

    def expires(self) -> datetime:
        """When the certificate does. Raises ConfigError."""
        try:
            return x509.load_pem_x509_certificates(self.cert.read_bytes())[0].not_valid_after_utc
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.cert} is no certificate; write it in PEM") from error

    def stamp(self) -> tuple[object, ...]:
        """What differs once one of the files has been replaced or written."""
        return _stamp(self.cert), _stamp(self.key)


class Tls:
    """The TLS listener's port, and the context of its next connection; for one thread."""

    def __init__(self, port: int, pair: Pair) -> None:
        self.port = port
        self._pair = pair
        self._tried = self._seen = pair.stamp()
        self.context = pair.context()

    def renew(self) -> None:
        """Use changed files once two calls in a row see the same; keep what is there if they fail.

        Connections that are open keep what they began with.
        """
        before, self._seen = self._seen, self._pair.stamp()
        if self._seen == self._tried or self._seen != before:
            return
        self._tried = self._seen
        try:
            context, expires = self._pair.context(), self._pair.expires()
        except ConfigError as error:
            log.error("certificate_refused", extra=facts(error=str(error)))
            return
        self.context = context
        log.info("certificate_renewed", extra=facts(expires=expires.isoformat()))


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
