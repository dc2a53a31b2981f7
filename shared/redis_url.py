"""What can be wrong with the URL of a Redis. No message repeats the URL or a part of it: it may hold a secret."""

from urllib.parse import parse_qs, urlsplit

_ESCAPE = "in a user or a password write # as %23, / as %2F, ? as %3F, [ as %5B and @ as %40"
_FORMS = "expected redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// for TLS, or unix:///PATH[?db=DATABASE]"
_LONGEST_PATH = 107  # bytes, of a Unix socket


def problem(url: str) -> str:
    """What is wrong, in words; "" where nothing is."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.strip().lower()
    if "sentinel" in scheme or "cluster" in scheme:
        return f"is of Sentinel or Cluster, which is not supported; name the primary itself: {_FORMS}"
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
