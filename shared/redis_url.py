"""What can be wrong with the URL of a Redis. No message repeats the URL or a part of it: it may hold a secret."""

import contextlib
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_ESCAPE = "in a user or a password write # as %23, / as %2F, ? as %3F, [ as %5B and @ as %40"
_FORMS = (
    "expected redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// for TLS, unix:///PATH[?db=DATABASE], "
    "redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT].../NAME[/DATABASE], or "
    "redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]..."
)
_PORT, _SENTINEL_PORT = 6379, 26379
SENTINEL = ("redis+sentinel", "rediss+sentinel")
CLUSTER = ("redis+cluster", "rediss+cluster")
TLS = ("rediss", "rediss+sentinel", "rediss+cluster")


@dataclass(frozen=True, slots=True)
class Several:
    """What a URL of several hosts says: of Sentinels, or of nodes of a Cluster."""

    addresses: tuple[tuple[str, int], ...]
    name: str  # of the primary that Sentinels watch
    database: int  # 0 of a Cluster
    username: str | None  # at the Redis; those of the Sentinels are settings of their own
    password: str | None
    tls: bool  # to all of them


def sentinels(url: str) -> Several | None:
    """What a URL of Sentinel says; None of another. Raises: ValueError: it is wrong; `problem` says how."""
    parts = urlsplit(url)
    if parts.scheme not in SENTINEL:
        return None
    name, _, database = parts.path.strip("/").partition("/")
    if not name or (database and not (database.isascii() and database.isdigit())):
        raise ValueError("no name, or a database that is no number")
    return _several(parts, _SENTINEL_PORT, name, database)


def cluster(url: str) -> Several | None:
    """What a URL of Cluster says; None of another. Raises: ValueError: it is wrong; `problem` says how."""
    parts = urlsplit(url)
    if parts.scheme not in CLUSTER:
        return None
    if parts.path.strip("/") not in ("", "0"):
        raise ValueError("a database, of which a Cluster has only the first")
    return _several(parts, _PORT, "", "")


def _several(parts: SplitResult, port: int, name: str, database: str) -> Several:
    hosts = [urlsplit(f"//{each}") for each in parts.netloc.rpartition("@")[2].split(",")]
    if parts.query or parts.fragment or any(each.hostname is None or each.port == 0 for each in hosts):
        raise ValueError("options, or a host without a name or with the port 0")
    credentials = [unquote(each) if each else None for each in (parts.username, parts.password)]
    return Several(
        tuple((each.hostname or "", each.port or port) for each in hosts),
        unquote(name),
        int(database or 0),
        credentials[0],
        credentials[1],
        parts.scheme in TLS,
    )


_LONGEST_PATH = 107  # bytes, of a Unix socket


def problem(url: str) -> str:
    """What is wrong, in words; "" where nothing is."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.strip().lower()
    for kind, taken in (("Sentinel", sentinels), ("Cluster", cluster)):
        if kind.lower() in scheme:
            with contextlib.suppress(ValueError):
                if taken(url):
                    return ""
            return f"is none of {kind}; {_FORMS}; {_ESCAPE}"
    if not separator or scheme not in ("redis", "rediss", "unix"):
        return f"does not begin with redis://, rediss:// or unix://; {_FORMS}"
    if any(character.isspace() or not character.isprintable() for character in url):
        return f"holds a blank or a control character; {_FORMS}"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
    except ValueError:
        return f"has a bracket without its other half; {_ESCAPE}"
    if ("@" in rest and "@" not in parts.netloc) or parts.fragment or rest.endswith("#"):
        return f"cannot be taken apart at its #, / and ?; {_ESCAPE}"
    database = parse_qs(parts.query, keep_blank_values=True).get("db", [""])[-1]
    if scheme == "unix":
        if not parts.path.strip("/") or parts.netloc.rpartition("@")[2]:
            return "names no socket; a path follows three slashes, as in unix:///run/redis.sock?db=0"
        if len(parts.path.encode()) > _LONGEST_PATH:
            return f"has a path of {len(parts.path.encode())} bytes; that of a Unix socket has at most {_LONGEST_PATH}"
    else:
        try:
            port = parts.port
        except ValueError:
            return f"has a port that is no number from 1 to 65535; {_FORMS}; {_ESCAPE}"
        if port == 0:
            return "has the port 0; expected 1 to 65535"
        database = database or parts.path.strip("/")
    if database and not (database.isascii() and database.isdigit()):
        return "has a database that is no number; expected one as in /0, or in ?db=0"
    return ""
