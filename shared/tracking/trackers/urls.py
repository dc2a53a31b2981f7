"""URLs of servers, as a log may show them."""

from urllib.parse import urlsplit


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, which may hold a token; what is no URL stays as it is."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
