"""Backplanes by URL: which client library speaks to which broker. The libraries are imported on use."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from wsdeco.backplanes.broker import BrokerBackplane
from wsdeco.backplanes.link import Broker
from wsdeco.backplanes.supervision import Supervision
from wsdeco.reasons import BackplaneError

__all__ = ["open_backplane"]

_PREFIX: Final = "wsdeco"

_DEFAULT_SUPERVISION: Final = Supervision()


def open_backplane(url: str, supervision: Supervision = _DEFAULT_SUPERVISION) -> BrokerBackplane:
    """Return a new backplane over the broker at `url`, which is connected to when it is started.

    Args:
        url: `nats://`, `tls://` (NATS), `redis://`, `rediss://` (Redis with TLS) or `unix://` (Redis). `?prefix=chat`
            sets the rooms of one application apart from those of others at the same broker.
        supervision: How the connection is kept up.

    Raises:
        BackplaneError: The client library is missing.
        ValueError: The URL cannot be used.
    """
    make = _SCHEMES.get(url.partition("://")[0].lower()) if "://" in url else None
    if make is None:
        # Without the rest, which may hold a password.
        scheme = url.partition(":")[0] if ":" in url else ""
        found = repr(scheme) if re.fullmatch(r"[\w+.-]{1,20}", scheme) else "something else"
        raise ValueError(
            f"a backplane is named by a URL that begins with {', '.join(f'{each}://' for each in _SCHEMES)}, not with "
            f"{found}: write 'nats://127.0.0.1:4222' or 'redis://127.0.0.1:6379', for instance"
        )
    urls, prefix = _parse(url)
    name = ",".join(_without_secrets(each) for each in urls)
    return BrokerBackplane(make(name, urls), prefix, supervision)


def _parse(url: str) -> tuple[list[SplitResult], str]:
    scheme = url.partition("://")[0].lower()
    prefix = _PREFIX
    urls: list[SplitResult] = []
    for part in url.split(",") if scheme in ("nats", "tls") else [url]:
        split = _split(part if "://" in part else f"{scheme}://{part}")
        if split is None:
            raise ValueError(
                f"the {scheme}:// URL of the backplane has no usable host and port: write {scheme}://host:port, with "
                "special characters of user name and password escaped, such as %2F for a slash"
            )
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        prefix = query.pop("prefix", prefix)
        if query and scheme in ("nats", "tls"):
            raise ValueError(
                f"the {scheme}:// URL of the backplane has the option {next(iter(query))!r}, which there is not: "
                "it takes 'prefix' alone"
            )
        urls.append(split._replace(query=urlencode(query)))
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", prefix) is None:
        raise ValueError(f"the prefix of a backplane has up to 64 letters, digits, '_' and '-', not {prefix!r}")
    return urls, prefix


def _split(url: str) -> SplitResult | None:
    try:
        split = urlsplit(url)
        # The port is checked when it is looked at.
        usable = split.port != 0 and (split.hostname is not None or split.scheme == "unix")
    except ValueError:
        return None
    return split if usable else None


def _without_secrets(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _nats(name: str, urls: list[SplitResult]) -> Broker:
    try:
        from wsdeco.backplanes.nats import NatsBroker  # noqa: PLC0415 - nats-py is loaded only if it is used
    except ModuleNotFoundError as exc:
        raise _missing("nats", "nats-py") from exc
    return NatsBroker(name, urls)


def _redis(name: str, urls: list[SplitResult]) -> Broker:
    try:
        from wsdeco.backplanes.redis import RedisBroker  # noqa: PLC0415 - redis-py is loaded only if it is used
    except ModuleNotFoundError as exc:
        raise _missing("redis", "redis-py") from exc
    return RedisBroker(name, urls[0].geturl())


def _missing(extra: str, library: str) -> BackplaneError:
    return BackplaneError(f"the backplane needs {library}, which is not installed: pip install 'wsdeco[{extra}]'")


_SCHEMES: Final[dict[str, Callable[[str, list[SplitResult]], Broker]]] = {
    "nats": _nats,
    "tls": _nats,
    "redis": _redis,
    "rediss": _redis,
    "unix": _redis,
}
