"""Which releases of Redis and Valkey have the fixes, by the words in which they are told."""

import pytest

from shared.streams.releases import FIXED, Release, of_info, of_words


@pytest.mark.parametrize(
    ("said", "name", "fixed"),
    [
        ("Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64", "Redis 6.2.14", False),
        ("Redis server v=6.2.22 sha=00000000:0", "Redis 6.2.22", True),
        ("Redis server v=7.0.15 sha=00000000:0", "Redis 7.0.15", False),
        ("Redis server v=7.2.13 sha=00000000:0", "Redis 7.2.13", False),
        ("Redis server v=7.2.14 sha=00000000:0", "Redis 7.2.14", True),
        ("Redis server v=8.0.4 sha=00000000:0", "Redis 8.0.4", False),
        ("Redis server v=8.2.6 sha=00000000:1", "Redis 8.2.6", True),
        ("Redis server v=8.8.0 sha=00000000:1", "Redis 8.8.0", True),
        ("Redis server v=5.0.14 sha=00000000:1", "Redis 5.0.14", False),
        ("Valkey server v=8.1.8 sha=00000000:0", "Valkey 8.1.8", False),
        ("Valkey server v=8.1.9 sha=00000000:0", "Valkey 8.1.9", True),
        ("Valkey server v=9.1.2 sha=00000000:0", "Valkey 9.1.2", True),
        ("Valkey server v=10.0.0 sha=00000000:0", "Valkey 10.0.0", True),
    ],
)
def test_a_release_has_the_fixes_or_warns(said: str, name: str, fixed: bool) -> None:
    release = of_words(said)
    assert release is not None
    assert str(release) == name
    assert release.is_fixed == fixed
    if fixed:
        assert release.warning is None
    else:
        enough = ".".join(map(str, FIXED[release.name][-1]))
        assert name in str(release.warning)
        assert enough in str(release.warning)


def test_what_is_no_server_has_no_release() -> None:
    assert of_words("redis-cli 7.0.15") is None
    assert of_words("") is None


def test_valkey_is_known_though_it_calls_itself_a_redis() -> None:
    info = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}
    assert of_info(info) == Release("Valkey", (9, 1, 2))
    assert of_info({"redis_version": "8.2.1"}) == Release("Redis", (8, 2, 1))
