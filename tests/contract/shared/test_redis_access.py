"""Redis behind TLS and passwords, with the users of deploy/redis: each service can do its work and nothing else.

Long because every user needs its own work done, and its own refusals, before one locked server.
"""

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from routershift.v1 import trajectory_pb2 as pb
from services.cli.commands.functions import functions
from shared.errors import InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import Consumer, End
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import Run
from shared.streams.saved import Saved
from shared.streams.solve_rates import SolveRate
from tests.support.certificates import Authority
from tests.support.redis_server import server_with_tls

USERS = ("curriculum", "generation", "environments", "reward", "learner", "operator")
ADMINISTRATOR = "administrator"  # of a test: no user of deploy/redis may change others
SMALL = 1 << 10  # entries above it go in chunks
SETTINGS = StreamSettings(block_seconds=0.05, idle_seconds=0.2, max_entry_bytes=SMALL, consumer="one")


@dataclass(frozen=True)
class Server:
    port: int
    authority: Authority
    passwords: Path  # files, by the name of the user

    def settings(self, user: str, **changes: object) -> RedisSettings:
        certificate, key = self.authority.folder / "client.pem", self.authority.folder / "client.key"
        values: dict[str, object] = {
            "url": f"rediss://127.0.0.1:{self.port}/0",
            "username": user,
            "password_file": self.passwords / user,
            "authority": self.authority.certificate,
            "certificate": certificate,
            "key": key,
            "connect_seconds": 3.0,
        }
        return RedisSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis with the files of deploy/redis."""
    binary, folder = server_with_tls(), tmp_path_factory.mktemp("locked")
    authority = Authority.make(folder / "tls")
    authority.sign("client")
    certificate, key = authority.sign("server")
    (folder / "passwords").mkdir()
    (folder / "passwords" / ADMINISTRATOR).write_text(ADMINISTRATOR)
    for user in (*USERS, "functions"):
        (folder / "passwords" / user).write_text(f"{user * 8}\n")
    redis = repository / "deploy/redis"
    template = (redis / "users.acl").read_text()
    with (folder / "users.acl").open("w") as users:
        script = [str(redis / "acl.sh"), f"{folder}/passwords/", binary]
        subprocess.run(script, input=template, stdout=users, check=True, text=True)
        users.write(f"user {ADMINISTRATOR} on >{ADMINISTRATOR} +@all\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = (redis / "tls.conf").read_text().replace("6379", str(port))
    for name, file in {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.certificate}.items():
        configuration = configuration.replace(f"/etc/redis-tls/{name}", str(file))
    (folder / "redis.conf").write_text(f"{configuration}\nbind 127.0.0.1\naclfile {folder}/users.acl\nsave ''\n")
    process = subprocess.Popen([binary, str(folder / "redis.conf"), "--dir", str(folder)], stdout=subprocess.DEVNULL)
    server = Server(port, authority, folder / "passwords")
    assert asyncio.run(functions(server.settings("functions")))
    yield server
    process.terminate()
    process.wait(10)


@dataclass(frozen=True)
class As:
    """What a service has of a run."""

    redis: Redis
    run: Run


@asynccontextmanager
async def users(server: Server, run_id: str) -> AsyncIterator[dict[str, As]]:
    async with AsyncExitStack() as stack:
        found = {}
        for user in USERS:
            redis = await connect(server.settings(user))
            stack.push_async_callback(redis.aclose)
            found[user] = As(redis, Run(redis, run_id, SETTINGS))
            await found[user].run.open()
        yield found


def prompt(index: int) -> pb.Prompt:
    return pb.Prompt(prompt_id=f"{index:08d}", text="?", sampling=pb.SamplingParams(n=2))


LARGE = pb.TrajectoryGroup(prompt=pb.Prompt(text="x" * 3 * SMALL))
PLAIN = pb.TrajectoryGroup(prompt=pb.Prompt(text="x"))


async def test_a_run_from_prompt_to_weights_and_every_way_out(server: Server) -> None:
    async with users(server, "work") as by:
        curriculum, learner = by["curriculum"].run, by["learner"].run
        await learner.claim_format()
        await curriculum.claim_format()
        for index in range(await curriculum.next_prompt(), 6):
            assert await curriculum.admit(index, prompt(index), 10) == "ok"

        stages: list[tuple[Consumer, Stream | None]] = [
            (by["generation"].run.consumer(Stream.PROMPTS), Stream.ROLLOUTS),
            (by["reward"].run.consumer(Stream.ROLLOUTS), Stream.SCORED),
            (learner.consumer(Stream.SCORED), None),
        ]
        for stage, (consumer, destination) in enumerate(stages):
            entries = await consumer.read(10)
            assert len(entries) == 6 - stage
            beating = asyncio.create_task(consumer.beat())
            await asyncio.sleep(SETTINGS.idle_seconds / 2)  # a beat comes every third
            assert not beating.done()
            beating.cancel()
            for i, entry in enumerate(entries):
                if i == 0:
                    assert await consumer.bury(entry, "test", "x" * (2 * SMALL if stage else 1))
                elif destination is None:
                    done = End.trained(1) if i == 1 else End.dropped("test")
                    assert await consumer.end(entry, done)
                else:
                    assert await consumer.hand_over(entry, destination, LARGE if i % 2 else PLAIN)

        await by["generation"].run.register_replica("r", workers=1, version=0)
        assert list(await learner.replicas()) == ["r"]
        await by["generation"].run.remove_replica("r")

        await learner.return_tickets(["nobody/0"])
        await learner.announce(pb.WeightsManifest(version=1))
        await learner.report_progress(Progress(version=1))
        await curriculum.report_progress(Progress(evaluated_version=1))
        for reader in (by["generation"].run, by["environments"].run, learner):
            assert (await reader.newest_weights() or pb.WeightsManifest()).version == 1
            assert [manifest.version for manifest in await reader.announced_weights()] == [1]
        for watcher in (curriculum, learner):
            assert (await watcher.progress()).evaluated_version == 1
            assert (await watcher.backlog())[Stream.SCORED].entries == 0
            assert (await watcher.ledger()).trained == 2
        assert await curriculum.dead_letters() == 3
        assert await curriculum.tickets_held() == 0

        operator = by["operator"]
        first, second, third = await operator.run.dead.ids()
        await operator.run.dead.purge(first)
        await operator.run.dead.replay(second)
        assert (await operator.run.dead.get(third)).reason == "test"
        found = await audit(operator.redis, operator.run, None)
        assert found.problems == {}
        assert found.ledger.balanced


async def test_solve_rates_go_from_reward_to_the_curriculum(server: Server) -> None:
    async with users(server, "solved") as by:
        await by["curriculum"].run.solve_rates.open(10)
        await by["reward"].run.solve_rates.record("row", 0.5, equal=False)
        assert await by["curriculum"].run.solve_rates.read(["row"]) == [SolveRate(1, 0.5, equal=False)]


async def test_episodes_go_to_reward_or_past_it(server: Server) -> None:
    async with users(server, "episodes") as by:
        for index in range(4):
            made = prompt(index)
            made.environment = "calculator"
            assert await by["curriculum"].run.admit(index, made, 10) == "ok"
        reader = by["environments"].run.consumer(Stream.EPISODES)
        first, second, third, fourth = await reader.read(10)
        assert await reader.hand_over(first, Stream.ROLLOUTS, LARGE)
        assert await reader.hand_over(second, Stream.SCORED, LARGE)
        assert await reader.end(third, End.dropped("environment_failed"))
        assert await reader.bury(fourth, "bad_prompt", "x")
        await by["environments"].run.solve_rates.record("row", 0.5, equal=False)
        assert len(await by["reward"].run.consumer(Stream.ROLLOUTS).read(10)) == 1
        assert len(await by["learner"].run.consumer(Stream.SCORED).read(10)) == 1
        await by["operator"].run.dead.replay((await by["operator"].run.dead.ids())[0])
        assert [entry.group for entry in await reader.read(10)] == [fourth.group]
        assert (await audit(by["operator"].redis, by["operator"].run, None)).problems == {}


async def test_the_learner_saves_what_the_curriculum_brings_back(server: Server) -> None:
    async with users(server, "saved") as by:
        await by["curriculum"].run.solve_rates.open(10)
        await by["reward"].run.solve_rates.record("row", 0.5, equal=False)
        await by["curriculum"].run.report_progress(Progress(evaluated_version=1))
        saved = await Saved.collect(by["learner"].run, 1)
    async with users(server, "empty") as by:
        await saved.restore(by["curriculum"].run)
        assert await by["curriculum"].run.solve_rates.read(["row"]) == [SolveRate(1, 0.5, equal=False)]
        assert (await by["curriculum"].run.progress()).evaluated_version == 1


async def test_entries_of_the_dead_are_taken_over(server: Server) -> None:
    async with users(server, "sweep") as by:
        await by["curriculum"].run.admit(0, prompt(0), 1)
        generation = by["generation"]
        (entry,) = await generation.run.consumer(Stream.PROMPTS).read(1)
        other = Consumer(
            generation.redis, generation.run.keys, Stream.PROMPTS, SETTINGS.model_copy(update={"consumer": "b"})
        )
        async with asyncio.timeout(10):
            while not (taken := await other.read(1)):
                pass
        assert taken[0].id == entry.id
        assert taken[0].deliveries == 2


async def test_a_password_is_replaced_while_a_run_goes_on(server: Server, tmp_path: Path) -> None:
    """As SECURITY.md says: add the new one, write it into the file, take the old one away."""
    file, old, new = tmp_path / "password", "reward" * 8, "another" * 8
    file.write_text(old)
    admin = await connect(server.settings(ADMINISTRATOR))
    redis = await connect(server.settings("reward", password_file=file))
    run = Run(redis, "rotation", SETTINGS)
    await run.open()

    async def connections() -> set[str]:
        return {each["id"] for each in await admin.client_list() if each["user"] == "reward"}

    try:
        opened = await connections()
        await admin.acl_setuser("reward", enabled=True, passwords=[f"+{new}"])
        file.write_text(new)
        await admin.acl_setuser("reward", enabled=True, passwords=[f"-{old}"])
        await run.open()
        assert await connections() == opened, "a connection stays what it was when it was opened"

        await admin.client_kill_filter(user="reward")
        await run.open()
        assert not await connections() & opened

        file.write_text(old)
        await admin.client_kill_filter(user="reward")
        with pytest.raises(PreconditionError, match=r"WRONGPASS|invalid username-password"):
            await run.open()
    finally:
        await admin.acl_setuser("reward", enabled=True, passwords=[f"+{old}", f"-{new}"])
        await redis.aclose()
        await admin.aclose()


Attempt = Callable[[dict[str, As]], Awaitable[object]]

FORBIDDEN: dict[str, Attempt] = {
    "generation announces weights": lambda by: by["generation"].run.announce(pb.WeightsManifest(version=9)),
    "generation writes weights": lambda by: by["generation"].redis.xadd("{no}:weights", {"p": b""}),
    "generation rewrites weights": lambda by: by["generation"].redis.xtrim("{no}:weights", 0),
    "generation says how far the run is": lambda by: by["generation"].run.report_progress(Progress(version=9)),
    "generation writes a reward": lambda by: by["generation"].redis.xadd("{no}:scored", {"p": b""}),
    "generation reads rewards": lambda by: by["generation"].redis.xrange("{no}:scored"),
    "generation admits": lambda by: by["generation"].run.admit(0, prompt(0), 1),
    "reward announces weights": lambda by: by["reward"].run.announce(pb.WeightsManifest(version=9)),
    "reward reads weights": lambda by: by["reward"].run.newest_weights(),
    "generation reads episodes": lambda by: by["generation"].run.consumer(Stream.EPISODES).read(1),
    "environments reads prompts": lambda by: by["environments"].run.consumer(Stream.PROMPTS).read(1),
    "environments announces weights": lambda by: by["environments"].run.announce(pb.WeightsManifest(version=9)),
    "environments admits": lambda by: by["environments"].run.admit(0, prompt(0), 1),
    "reward reads episodes": lambda by: by["reward"].run.consumer(Stream.EPISODES).read(1),
    "reward reads prompts": lambda by: by["reward"].run.consumer(Stream.PROMPTS).read(1),
    "curriculum reads rollouts as reward": lambda by: by["curriculum"].run.consumer(Stream.ROLLOUTS).read(1),
    "curriculum writes a reward": lambda by: by["curriculum"].redis.xadd("{no}:scored", {"p": b""}),
    "curriculum announces weights": lambda by: by["curriculum"].run.announce(pb.WeightsManifest(version=9)),
    "curriculum takes a group away": lambda by: by["curriculum"].redis.xgroup_destroy("{no}:prompts", "generation"),
    "learner writes rollouts": lambda by: by["learner"].redis.xadd("{no}:rollouts", {"p": b""}),
    "learner reads rollouts as reward": lambda by: by["learner"].run.consumer(Stream.ROLLOUTS).read(1),
    "learner touches another key": lambda by: by["learner"].redis.set("other", "1"),
    "operator empties the server": lambda by: by["operator"].redis.flushall(),
    "operator changes the server": lambda by: by["operator"].redis.config_set("maxmemory", "1"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_what_is_another_users_is_refused(server: Server, what: str) -> None:
    async with users(server, "no") as by:
        with pytest.raises(PreconditionError, match=r"(?i)permission|can't run|can't access|cannot access"):
            await FORBIDDEN[what](by)


# A library that carries out any command; whoever calls it may do no more than before.
OBEDIENT = (
    "#!lua name=obedient\nredis.register_function('obey', function(_, command) return redis.call(unpack(command)) end)"
)

# What each user may write to, and by which of WRITES; reading groups apart, whose commands another user cannot give.
WRITES = {
    "unlink": (),
    "set": ("x",),
    "expire": (1,),
    "persist": (),
    "xadd": ("*", "p", "x"),
    "xdel": ("1-1",),
    "xtrim": ("MAXLEN", 0),
    "xgroup destroy": ("g",),
    "hset": ("f", 1),
    "hdel": ("f",),
    "hincrby": ("f", 1),
    "sadd": ("x",),
    "srem": ("x",),
    "rename": ("{keys}:other",),
    "copy": ("{keys}:other",),
}
KEYS = (
    "prompts",
    "episodes",
    "rollouts",
    "scored",
    "dead",
    "tickets",
    "in_flight",
    "ledger",
    "bytes",
    "ended",
    "payloads",
    "weights",
    "progress",
    "replicas",
    "solve_rates",
    "fences",
    "lease:learner",
    "lease:curriculum",
    "settled:prompts:1",
    "settled:rollouts:1",
    "waiting:scored",
)
_SETTLES = {
    "tickets": {"srem"},
    "in_flight": {"hset", "hdel"},
    "ledger": {"hincrby"},
    "bytes": {"hincrby"},
    "ended": {"xadd"},
    "dead": {"xadd"},
    "payloads": {"hset", "hdel"},
}
MAY: dict[str, dict[str, set[str]]] = {
    "curriculum": {
        "prompts": {"xadd"},
        "episodes": {"xadd"},
        "tickets": {"sadd"},
        "in_flight": {"hset"},
        "ledger": {"hincrby"},
        "bytes": {"hincrby"},
        "progress": {"hset"},
        "solve_rates": {"hset"},
        "fences": {"hset", "hincrby"},
        "lease:curriculum": {"set", "unlink"},
    },
    "generation": _SETTLES
    | {
        "prompts": {"xdel"},
        "rollouts": {"xadd"},
        "replicas": {"hset", "hdel"},
        "settled:prompts:1": {"set"},
        "waiting:scored": {"set"},
    },
    "environments": _SETTLES
    | {
        "episodes": {"xdel"},
        "rollouts": {"xadd"},
        "scored": {"xadd"},
        "solve_rates": {"hset"},
        "waiting:scored": {"set"},
    },
    "reward": _SETTLES
    | {
        "rollouts": {"xdel"},
        "scored": {"xadd"},
        "solve_rates": {"hset"},
        "settled:rollouts:1": {"set"},
        "waiting:scored": {"set"},
    },
    "learner": _SETTLES
    | {
        "scored": {"xdel"},
        "weights": {"xadd"},
        "progress": {"hset"},
        "replicas": {"hdel"},
        "fences": {"hset", "hincrby"},
        "lease:learner": {"set", "unlink"},
        "waiting:scored": {"set"},
    },
}


@pytest.mark.parametrize("user", MAY)
async def test_each_key_is_written_by_its_own_commands_alone(server: Server, user: str) -> None:
    """Key by key, as a service that was taken over would try: plainly, and from a function that does as it is told."""
    found: dict[str, set[str]] = {}
    async with users(server, "keys") as by:
        redis = by[user].redis
        await by["operator"].redis.function_load(OBEDIENT, replace=True)
        for key in KEYS:
            for command, arguments in WRITES.items():
                words = (*command.split(), f"{{keys}}:{key}", *arguments)
                if await _is_allowed(redis, *words):
                    found.setdefault(key, set()).add(command)
                else:
                    assert not await _is_allowed(redis, "fcall", "obey", 0, *words), (user, command, key)
        await by["operator"].redis.function_delete("obedient")
    assert found == MAY[user]


# All commands of the category @scripting that a service must not have.
SCRIPTING: dict[str, tuple[object, ...]] = {
    "eval": ("while true do end", 0),
    "eval_ro": ("while true do end", 0),
    "evalsha": ("0" * 40, 0),
    "evalsha_ro": ("0" * 40, 0),
    "script|load": ("while true do end",),
    "script|exists": ("0" * 40,),
    "script|flush": (),
    "script|kill": (),
    "script|debug": ("no",),
    "script|help": (),
    "function|load": ("#!lua name=x\nredis.register_function('x', function() while true do end end)",),
    "function|delete": ("x",),
    "function|restore": ("x",),
    "function|dump": (),
    "function|flush": (),
    "function|kill": (),
    "function|list": (),
    "function|stats": (),
    "function|help": (),
}


@pytest.mark.parametrize("user", [*MAY, "functions"])
async def test_a_service_brings_no_script_so_none_that_never_ends(server: Server, user: str) -> None:
    async with users(server, "scripts") as by:
        listed: Any = await by["operator"].redis.command_list(category="scripting")
        known = {name.decode() for name in listed} - {"script", "function"}
        assert known == SCRIPTING.keys() | {"fcall", "fcall_ro"}
        redis = await connect(server.settings(user))
        found = {
            name for name, arguments in SCRIPTING.items() if await _is_allowed(redis, *name.split("|"), *arguments)
        }
        assert found == ({"function|load"} if user == "functions" else set())
        assert await _is_allowed(redis, "fcall", "no_function", 0) == (user != "functions")
        await redis.aclose()
        if user == "functions":
            await by["operator"].redis.function_delete("x")


async def test_functions_that_a_service_may_not_load_are_waited_for(server: Server) -> None:
    async with users(server, "waiting") as by:
        await by["operator"].redis.function_flush()
        redis = await connect(server.settings("generation", outage_seconds=0.1))
        calling = Run(redis, "waiting", SETTINGS)
        with pytest.raises(PreconditionError, match="run `routershift functions` as its user functions"):
            await calling.return_tickets(["nobody/0"])
        redis.outage_seconds = 60.0
        waiting = asyncio.create_task(calling.return_tickets(["nobody/0"]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await functions(server.settings("functions"))
        assert not await functions(server.settings("functions")), "they are there"
        await asyncio.wait_for(waiting, 10)
        await redis.aclose()


async def _is_allowed(redis: Redis, *words: object) -> bool:
    try:
        await redis.execute_command(*words)  # type: ignore[no-untyped-call]  # it has no types
    except (PreconditionError, RedisError) as error:
        return re.search(r"(?i)permission|can't run|can't access|cannot access", str(error)) is None
    return True


async def test_without_a_password_there_is_only_ping(server: Server) -> None:
    settings = server.settings("x", username=None, password_file=None)
    with pytest.raises(PreconditionError, match="check the user and the password"):
        await connect(settings)


async def test_a_database_that_is_not_there_and_unknown_options_are_no_matter_of_passwords(redis_url: str) -> None:
    with pytest.raises(PreconditionError, match="names a database that this Redis does not have"):
        await connect(RedisSettings(url=redis_url.replace("db=0", "db=99")))
    for option in ("secret=1", "socket_timeout=secret"):
        with pytest.raises(InvalidInputError, match="has an option after its") as refused:
            await connect(RedisSettings(url=f"{redis_url}&{option}"))
        assert "secret" not in str(refused.value)


async def test_a_wrong_password_and_a_missing_file_are_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("w" * 64)
    with pytest.raises(PreconditionError, match="check the user and the password"):
        await connect(server.settings("learner", password_file=tmp_path / "wrong"))
    with pytest.raises(NotFoundError, match=r"check the table \[redis\]"):
        await connect(server.settings("learner", password_file=tmp_path / "missing"))


async def test_another_authority_no_certificate_and_clear_text_are_refused(server: Server, tmp_path: Path) -> None:
    bare: dict[str, object] = {"certificate": None, "key": None}
    for wrong in (
        {"authority": Authority.make(tmp_path / "other").certificate},
        bare,
        bare | {"url": f"redis://127.0.0.1:{server.port}/0", "authority": None},
    ):
        with pytest.raises(UnavailableError, match="no Redis answers there"):
            await connect(server.settings("learner", connect_seconds=0.3, **wrong))


async def test_a_new_connection_has_the_new_password(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "password"
    shutil.copy(server.passwords / "learner", file)
    redis = await connect(server.settings("learner", password_file=file))
    file.write_text((server.passwords / "reward").read_text())
    await redis.connection_pool.disconnect()
    with pytest.raises(PreconditionError, match="invalid username-password"):
        await redis.ping()
    await redis.aclose()


def test_a_password_that_can_be_guessed_makes_no_user(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "curriculum").write_text("hunter2")
    with (repository / "deploy/redis/users.acl").open() as template:
        script = [str(repository / "deploy/redis/acl.sh"), f"{tmp_path}/"]
        done = subprocess.run(script, stdin=template, capture_output=True, text=True)
    assert done.returncode == 2
    assert "curriculum has 7 characters" in done.stderr
    assert "hunter2" not in done.stdout
