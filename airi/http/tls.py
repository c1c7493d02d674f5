"""TLS for upstreams: verification always on unless a person says otherwise, own authorities, client certificates."""

from __future__ import annotations

import importlib.util
import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from airi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How to trust an upstream. ``ca_file`` is added to nothing: it replaces the system's authorities."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    verify: bool = True


@lru_cache(maxsize=64)
def client_context(options: TlsOptions) -> ssl.SSLContext:
    """Return the context of ``options``, built once. Raises :class:`ConfigError` naming the file that is wrong."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file or _fallback_authorities())
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"TLS: the authorities in {options.ca_file} cannot be read: {error}"]) from error
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.certificate_file is not None:
        try:
            context.load_cert_chain(options.certificate_file, options.key_file)
        except (OSError, ssl.SSLError) as error:
            named = f"{options.certificate_file} with key {options.key_file or 'in the same file'}"
            raise ConfigError([f"TLS: the client certificate {named} cannot be used: {error}"]) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def server_context(certificate_file: str | Path, key_file: str | Path) -> ssl.SSLContext:
    """Return the context of a listener. Raises :class:`ConfigError` naming the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"TLS: certificate {certificate_file} with key {key_file}: {error}"]) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _fallback_authorities() -> str | None:
    """Return certifi's file where the system has no authorities of its own, else ``None``."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return None
    found = importlib.util.find_spec("certifi")
    if found is None or found.origin is None:
        return None
    return str(Path(found.origin).parent / "cacert.pem")
