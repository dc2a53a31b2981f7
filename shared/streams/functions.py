"""The scripts of lua/ as one library of Redis Functions, which is named by the digest of what it does.

A server keeps it with its data, and gives it to its replicas. Versions of RouterShift with other scripts have a library
each, and call only their own. A user of Redis may call functions without a right to load or to write any.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from redis.asyncio import Redis
from redis.exceptions import ResponseError

# What Redis asks of a function: `no-writes` may be called with the right to read its keys alone; `allow-oom` runs in a
# Redis without memory too, because it shrinks what is held or writes a few bytes of bounded number; others are refused
# there, and waited for.
FLAGS = {
    "account": "no-writes",
    "admit": "",
    "announce": "",
    "backlog": "no-writes",
    "hold": "allow-oom",
    "lease": "allow-oom",
    "mark": "allow-oom",
    "newest": "no-writes",
    "purge": "allow-oom",
    "release": "allow-oom",
    "replay": "",
    "replicas": "allow-oom",
    "report": "",
    "retire": "allow-oom",
    "room": "allow-oom",
    "settle": "",
    "settle_shrinking": "allow-oom",
    "solve": "allow-oom",
}
_FILES = {"settle_shrinking": "settle"}  # a function whose script has another name
_FENCED = frozenset({"admit", "announce", "release", "report", "settle", "settle_shrinking"})
# Those whose answer is relied on: see redis.durability.
ACKNOWLEDGED = frozenset({"admit", "announce", "lease", "release", "report", "settle", "settle_shrinking"})
_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Library:
    """What a server is given."""

    name: str
    text: str

    def call(self, function: str, fenced: bool) -> tuple[str, str]:
        """The command that calls a function, and the function's name on the server."""
        command = "FCALL_RO" if FLAGS[function] == "no-writes" else "FCALL"
        return command, f"{self.name}_{_named(function, fenced)}"


@cache
def library() -> Library:
    """That of this version."""
    functions = {_named(name, fenced): (name, fenced) for name in FLAGS for fenced in (False, True)}
    bodies = {
        function: (source(name, fenced), FLAGS[name])
        for function, (name, fenced) in functions.items()
        if not fenced or name in _FENCED
    }
    told = hashlib.sha256(repr(sorted(bodies.items())).encode()).hexdigest()
    name = f"routershift_{told[:_DIGEST_CHARACTERS]}"
    registered = (
        f"redis.register_function{{function_name='{name}_{function}', flags={{{_quoted(flags)}}}, "
        f"callback=function(KEYS, ARGV)\n{body}\nend}}\n"
        for function, (body, flags) in bodies.items()
    )
    return Library(name, f"#!lua name={name}\n{''.join(registered)}")


@cache
def source(function: str, fenced: bool) -> str:
    """The script of a function. Args: fenced: with fence.lua before it."""
    return (_read("fence") if fenced else "") + _read(_FILES.get(function, function))


@cache
def digest(function: str, fenced: bool) -> str:
    """The SHA-1 of its script, by which Redis knows one that was loaded without a library."""
    return hashlib.sha1(source(function, fenced).encode()).hexdigest()  # noqa: S324  # as Redis names it


async def load(redis: Redis) -> bool:
    """Gives the server the library; False where it had it.

    Raises:
        PreconditionError: this user may not.
        ResponseError: the server has no functions.
    """
    try:
        await redis.function_load(library().text)
    except ResponseError as error:
        if "already exists" not in str(error):
            raise
        return False
    return True


def _named(function: str, fenced: bool) -> str:
    return f"{function}_fenced" if fenced else function


def _quoted(flags: str) -> str:
    return f"'{flags}'" if flags else ""


def _read(name: str) -> str:
    return resources.files("shared.streams").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
