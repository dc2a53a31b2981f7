"""Ports of all services: a default that is taken gives way, one that was asked for is refused, with all others."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from services.cli import ports
from services.cli.recipe import Recipe
from shared.errors import PreconditionError
from shared.recipes import load
from shared.settings import SERVICES


def recipe(**values: int) -> Recipe:
    flags = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
    return load(Recipe, None, {}, ["run.model=none", *flags])


@contextlib.contextmanager
def taken(port: int = 0) -> Iterator[int]:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture
def free() -> dict[str, int]:
    """A free port for every setting, so that what else runs on this machine does not matter."""
    with contextlib.ExitStack() as stack:
        names = [f"{service}__{key}" for service in SERVICES for key in ("port", "metrics_port")]
        return {name: stack.enter_context(taken()) for name in names}


def defaults(of: Recipe, moved: dict[str, int]) -> Recipe:
    """The recipe with other defaults: these values count as not given."""
    changes = {}
    for name, port in moved.items():
        service, _, key = name.partition(".")
        table = of.server(service)
        fields = table.model_fields_set - {key}
        changes[service] = table.model_construct(_fields_set=fields, **{**dict(table), key: port})
    return of.model_copy(update=changes)


def test_defaults_that_are_taken_give_way_with_one_line(free: dict[str, int]) -> None:
    with taken() as first, taken() as second:
        of = defaults(recipe(**free), {"generation.port": first, "learner.metrics_port": second})
        wanted = ports.plan(of)
        assert wanted.moved == {"generation.port": first, "learner.metrics_port": second}
        with ports.reserved(of, wanted) as found:
            assert found.keys() == wanted.moved.keys()
            assert not set(found.values()) & {first, second}
            line = wanted.in_words(found)
            assert "\n" not in line
            assert f"generation.port {first} -> {found['generation.port']}" in line


def test_nothing_is_said_where_nothing_moves(free: dict[str, int]) -> None:
    wanted = ports.plan(recipe(**free))
    assert (wanted.free, wanted.in_words({})) == ((), "")


def test_starts_at_the_same_moment_get_different_ports() -> None:
    """When the second looks, no service of the first listens yet."""
    of = recipe(**{f"{service}__metrics_port": 0 for service in SERVICES})
    with ports.settled(of) as (first, found), ports.settled(of) as (second, others):
        assert second.moved == {**second.moved, **first.kept}
        assert not second.kept.keys() & first.kept.keys()
        assert not set(found.values()) & set(others.values())
        assert set(others) >= set(first.kept)


def test_who_only_looks_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `doctor` and a dry run beside a start with the same ports: looking claims nothing, not even for a moment."""
    claims = []

    class Watched(socket.socket):
        def bind(self, address: Any, /) -> None:
            if self.family == socket.AF_UNIX:
                claims.append(address)
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Watched)
    of = recipe(**{f"{service}__metrics_port": 0 for service in SERVICES})
    wanted = ports.plan(of)
    assert not claims
    with ports.reserved(of, wanted):
        assert len(claims) == len(wanted.kept), "who starts does claim"


def test_a_port_that_is_given_and_held_by_another_start_is_refused() -> None:
    with taken() as port:
        pass
    of = recipe(**{f"{service}__metrics_port": 0 for service in SERVICES}, learner__port=port)
    with ports.settled(of), pytest.raises(PreconditionError, match=f"learner.port = {port} on .* is held by another"):
        ports.plan(of)
    assert ports.plan(of).kept["learner.port"] == port, "it is free again"


def test_all_conflicts_are_named_at_once(free: dict[str, int]) -> None:
    with taken() as first, taken() as second:
        given = free | {"generation__port": first, "reward__metrics_port": second}
        with pytest.raises(PreconditionError) as refused:
            ports.plan(recipe(**given))
    assert f"generation.port = {first}" in str(refused.value)
    assert f"reward.metrics_port = {second}" in str(refused.value)
    assert "0 for a free one" in str(refused.value)


def test_a_port_that_is_given_twice_is_refused(free: dict[str, int]) -> None:
    given = free | {"reward__port": free["learner__port"]}
    with pytest.raises(PreconditionError, match=r"(reward|learner)\.port = \d+ is also (reward|learner)\.port"):
        ports.plan(recipe(**given))


def test_a_default_gives_way_to_one_that_is_given(free: dict[str, int]) -> None:
    of = defaults(recipe(**free), {"generation.port": free["learner__port"]})
    assert ports.plan(of).moved == {"generation.port": free["learner__port"]}


def test_health_ports_are_looked_at_too(free: dict[str, int]) -> None:
    with taken() as port, pytest.raises(PreconditionError, match=f"learner.health_port = {port}"):
        ports.plan(recipe(**free, learner__health_port=port))
