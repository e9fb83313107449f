"""Addresses such as `s3://bucket/run`: what is one, and what of it may be read by others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qsl, quote, quote_plus, unquote

from autocompress.errors import SettingsError

# A letter alone is a drive of Windows; `Path` leaves one slash of two.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
# What is between the scheme and the options, however badly it is written: secrets may hold a slash.
_PARTS = re.compile(r"(?P<scheme>[^:]+://)(?:(?P<user>[^?]*)@)?(?P<place>[^?]*)(?:\?(?P<options>.*))?", re.S)
_SECRET_NAMES = re.compile("pass|pwd|secret|token|credential|key|sig", re.IGNORECASE)
HIDDEN = "***"
# Of a key's name; of a shorter one, which only a test has, other words have parts that are alike.
_LEAST_OF_NAME = 4
# Those that have a container where others have a user.
_AZURE = ("abfs", "abfss")


def is_address(path: str | Path) -> bool:
    """Whether a path is an address of a file system, with a scheme, and no folder of this machine."""
    return _SCHEME.match(_text(path)) is not None


def normal_address(path: str | Path) -> str:
    """An address as pyarrow takes it, also of a `Path` made of one; without a slash at its end."""
    text = _text(path)
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise ValueError(f"no address: {text!r}")
    if "://" not in scheme[0]:
        slashes = "///" if scheme[1].lower() == "file" else "//"
        text = f"{scheme[1]}:{slashes}{text[scheme.end() :]}"
    place, mark, options = text.partition("?")
    while place.endswith("/") and not place.endswith("//"):
        place = place[:-1]
    return f"{place}{mark}{options}"


def shown(address: str | Path) -> str:
    """An address as it may be written and shown: without its key, password and secrets among its options."""
    text = normal_address(address)
    parts = _PARTS.fullmatch(text)
    if parts is None:
        return text
    user, place, options = parts["user"], parts["place"], parts["options"]
    name, colon, _ = (user or "").partition(":")
    if user is None:
        before = ""
    elif _is_key(parts["scheme"], user):
        before = f"{HIDDEN}@"
    else:
        before = f"{name}{colon and ':' + HIDDEN}@"
    after = "" if options is None else f"?{'&'.join(_shown_option(o) for o in options.split('&'))}"
    return f"{parts['scheme']}{before}{place}{after}"


def secrets_of_address(address: str | Path) -> list[str]:
    """What nobody is to read in an address, as it is written there and as it is meant, the longest first."""
    parts = _PARTS.fullmatch(normal_address(address))
    if parts is None:
        return []
    name, _, password = (parts["user"] or "").partition(":")
    is_key = _is_key(parts["scheme"], parts["user"] or "") and len(name) >= _LEAST_OF_NAME
    secrets = {password, name if is_key else ""}
    secrets |= {value for option, value in parse_qsl(parts["options"] or "") if _SECRET_NAMES.search(option)}
    secrets |= {unquote(secret) for secret in secrets}
    return sorted({secret for secret in secrets if secret.strip("*")}, key=len, reverse=True)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text without secrets, also as addresses write them."""
    for secret in secrets:
        for written in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
            text = text.replace(written, HIDDEN)
    return text


def place_digest(address: str) -> str:
    """A short name for the place that an address leads to, whoever it is that asks and with whatever key."""
    text = normal_address(address)
    parts = _PARTS.fullmatch(text)
    if parts is None:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    scheme, options = _scheme(parts["scheme"]), dict(parse_qsl(parts["options"] or ""))
    container = (parts["user"] or "").partition(":")[0] if scheme in _AZURE else ""
    endpoint = _without_user(options.get("endpoint_override", ""))
    said = repr((scheme, container, parts["place"], endpoint))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def refuse_address(name: str, path: str | Path) -> None:
    """Refuse an address where a file or folder of this machine is to be written.

    Args:
        name: of the argument.
        path: that was given for it.

    Raises:
        SettingsError: it is an address.
    """
    if is_address(path):
        raise SettingsError(
            f"{name} must be a path on this machine but got '{shown(path)}' (write it here, then copy it "
            "there)."
        )


def _text(path: str | Path) -> str:
    return path if isinstance(path, str) else path.as_posix()


def _scheme(text: str) -> str:
    return text.partition(":")[0].lower()


def _is_key(scheme: str, user: str) -> bool:
    """Whether a user's name is one of a key, and no container and nobody's."""
    return _scheme(scheme) not in _AZURE and (_scheme(scheme) == "s3" or ":" in user)


def _shown_option(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}{equals}{HIDDEN if equals and _SECRET_NAMES.search(name) else _without_user(value)}"


def _without_user(endpoint: str) -> str:
    """An endpoint without a user and password before its host."""
    return re.sub(r"(//|%2F%2F|^)[^/@]*(@|%40)", rf"\g<1>{HIDDEN}@", endpoint, flags=re.IGNORECASE)
