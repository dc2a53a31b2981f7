"""A container engine for the tests, with images where no registry is in reach.

`Engine.open` takes the engine that answers, else starts a dockerd of its own where that is possible. Of what the
compose file pulls (Redis, Prometheus, Alertmanager, the Python base) it pulls what it can; for the rest it makes
stand-ins with the same names from Debian packages, which are other versions of the same programs. Packages are fetched
while images are built.
"""

import contextlib
import functools
import http.server
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
REQUIREMENTS = ROOT / "deploy" / "docker" / "requirements"
PYTHON_IMAGE = "python:3.11-slim-bookworm"
_PACKAGES = (
    "apt-get install --no-install-recommends docker.io docker-compose mmdebstrap prometheus prometheus-alertmanager"
)
_DPKG = [
    "force-unsafe-io",
    *(f"path-exclude=/usr/share/{folder}/*" for folder in ("man", "locale", "doc")),
]
_APT = ['Dir::Cache::pkgcache ""', 'Dir::Cache::srcpkgcache ""']  # as in Debian's images

_LOCKS = {
    "curriculum": ["core", "data"],
    "environments": ["core", "data", "gateway"],
    "reward": ["core", "data", "gateway", "reward"],
    "learner": ["core", "data", "gateway", "reward", "torch"],
    "generation-cpu": ["core", "data", "gateway", "reward", "torch", "vllm"],
}  # the builder makes every stage above a target too

_STAND_INS: dict[str, tuple[dict[str, str], str]] = {
    "redis:7.2.15-bookworm": (
        {},
        "RUN apt-get update -qq && apt-get install -qq --no-install-recommends redis-server && "
        "rm -rf /var/lib/apt/lists/* && install -d -o 999 -g 999 /data\n"
        'WORKDIR /data\nUSER 999:999\nCMD ["redis-server"]\n',
    ),
    "haproxy:3.2.6": (
        {},
        "RUN apt-get update -qq && apt-get install -qq --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*\n"
        "USER 99:99\n",
    ),
    "prom/prometheus:v3.5.0": (
        {"prometheus": "bin/prometheus", "promtool": "bin/promtool"},
        'RUN install -d -o 65534 -g 65534 /prometheus\nUSER 65534:65534\nENTRYPOINT ["/bin/prometheus"]\n',
    ),
    "prom/alertmanager:v0.28.1": (
        {
            "prometheus-alertmanager": "bin/alertmanager",
            "amtool": "bin/amtool",
            "/usr/share/prometheus/alertmanager/default.tmpl": "usr/share/prometheus/alertmanager/default.tmpl",
            "/usr/share/prometheus/alertmanager/email.tmpl": "usr/share/prometheus/alertmanager/email.tmpl",
        },
        'RUN install -d -o 65534 -g 65534 /alertmanager\nUSER 65534:65534\nENTRYPOINT ["/bin/alertmanager"]\n',
    ),
}


class Engine:
    """Builds, runs and composes in one container engine. Everything it started ends with `open`."""

    def __init__(self, folder: Path, environment: dict[str, str], index: str, fetcher: ThreadPoolExecutor) -> None:
        self._folder = folder
        self._fetcher = fetcher
        self._fetched: dict[str, Future[str]] = {}
        self._built: set[str] = set()
        self._base = PYTHON_IMAGE
        legacy = {"DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", "COMPOSE_HTTP_TIMEOUT": "300"}
        self.environment = {**os.environ, **legacy, **environment}
        self._arguments = ["--build-arg=PIP_NO_INDEX=1", f"--build-arg=PIP_FIND_LINKS={index}"]

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator["Engine"]:
        """Skips the test where there is no engine and none can be started. Args: folder: scratch, with much room."""
        if shutil.which("docker") is None or compose_command() is None:
            pytest.skip(f"needs a container engine and compose: {_PACKAGES}")
        with contextlib.ExitStack() as stack:
            environment = {}
            if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
                if os.geteuid() != 0 or shutil.which("dockerd") is None:
                    pytest.skip("needs a container engine that answers, or root and dockerd to start one")
                environment["DOCKER_HOST"] = stack.enter_context(_daemon(folder / "engine"))
            index = stack.enter_context(_index(folder / "wheels"))
            fetcher = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(fetcher.shutdown, wait=False, cancel_futures=True)
            yield cls(folder, environment, index, fetcher)

    def docker(self, *arguments: str) -> str:
        """What the command prints; its errors are those of the test."""
        return self.run(["docker", *arguments])

    def compose(self, *arguments: str) -> str:
        command = compose_command()
        assert command is not None
        return self.run([*command, *arguments])

    def run(self, command: Sequence[str], given: str | None = None) -> str:
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, input=given, capture_output=True, text=True, check=False
        )
        if (seconds := time.monotonic() - began) > 5:
            log.info("%.0f s: %s", seconds, " ".join(command)[:160])
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def prepare(self, targets: Sequence[str]) -> None:
        """Begins to fetch what the targets need; makes the base and what the compose file pulls."""
        for lock in dict.fromkeys(lock for target in targets for lock in _LOCKS[target]):
            self._fetched[lock] = self._fetcher.submit(self._fetch, lock)
        if not self._has(PYTHON_IMAGE):
            self._base = self._debian()
            self._arguments += [f"--build-arg=BASE_IMAGE={self._base}"]
        self._check_that_it_runs()
        for name, (programs, recipe) in _STAND_INS.items():
            if not self._has(name):
                self._stand_in(name, programs, recipe)

    def build(self, target: str) -> str:
        """Builds a target of the Dockerfile from packages that this machine's pip can get; gives its name."""
        name = f"localhost/routershift/{target}:latest"  # as compose has it where no REGISTRY is set
        if target not in self._built:
            for lock in _LOCKS[target]:
                self._fetched[lock].result()
            options = ["--force-rm", "--network=host", f"--target={target}", f"--tag={name}", *self._arguments]
            self.docker("build", *options, f"--file={DOCKERFILE}", ".")
            self._built.add(target)
        return name

    def _fetch(self, lock: str) -> str:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        to = ["--dest", str(self._folder / "wheels"), "--requirement", str(REQUIREMENTS / f"{lock}.txt")]
        return self.run([*download, *to])

    def _check_that_it_runs(self) -> None:
        """An engine that answers may still not be allowed to run anything, as in a container without privileges."""
        command = ["docker", "run", "--rm", "--network=none", "--memory=64m", self._base, "true"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the container engine cannot run a container here: {done.stderr.strip()[-300:]}")

    def _has(self, name: str) -> bool:
        """Whether the image is here, or a registry gave it."""
        for command in (["image", "inspect"], ["pull", "--quiet"]):
            done = subprocess.run(["docker", *command, name], env=self.environment, capture_output=True, check=False)
            if done.returncode == 0:
                return True
        return False

    def _debian(self) -> str:
        """A base from Debian's packages, with what python:slim has."""
        if shutil.which("mmdebstrap") is None:
            pytest.skip(f"no registry is in reach, and no mmdebstrap to make a base: {_PACKAGES}")
        tag, tar = "routershift-test/base:latest", self._folder / "base.tar"
        inspect = ["docker", "image", "inspect", tag]
        if subprocess.run(inspect, env=self.environment, capture_output=True, check=False).returncode != 0:
            self.run([
                "mmdebstrap", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                "--include=usr-is-merged,python3,python3-venv,ca-certificates,tini",
                *(f"--dpkgopt={option}" for option in _DPKG), *(f"--aptopt={option}" for option in _APT),
                "bookworm", str(tar),
            ])  # fmt: skip
            self.docker("import", str(tar), tag)
            tar.unlink()
        return tag

    def _stand_in(self, name: str, programs: dict[str, str], recipe: str) -> None:
        context = self._folder / name.replace("/", "-").replace(":", "-")
        context.mkdir(parents=True, exist_ok=True)
        lines = [f"FROM {self._base}"]
        for program, place in programs.items():
            shutil.copy(_program(program), context / Path(place).name)
            lines.append(f"COPY {Path(place).name} /{place}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n" + recipe)
        self.docker("build", "--network=host", "--tag", name, str(context))


@contextlib.contextmanager
def _index(wheels: Path) -> Iterator[str]:
    """Wheels on a port of ours: builds see this machine's package index, wherever that is.

    The port is a build argument, so that layers that are kept are found again only with the same one.
    """
    wheels.mkdir(exist_ok=True)
    handler = functools.partial(_Silent, directory=str(wheels))
    kept = wheels.with_name("port")
    port = int(kept.read_text()) if kept.exists() else 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        kept.write_text(str(server.server_address[1]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Not on the terminal."""


def compose_command() -> list[str] | None:
    """Version 2 where it is there, else version 1.29; None where there is neither."""
    plugin = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if plugin and plugin.returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def until(what: str, is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(2.0)


def _program(name: str) -> str:
    """Where a program, or a file by its path, lies on this machine."""
    found = name if Path(name).is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"no registry is in reach, and no {name} for a stand-in: {_PACKAGES}")
    return found


@contextlib.contextmanager
def _daemon(folder: Path) -> Iterator[str]:
    """A dockerd of our own, in a session of its own: Ctrl-C is for the test, which then ends it in order."""
    folder.mkdir(parents=True, exist_ok=True)
    host = f"unix://{folder}/engine.sock"
    with (folder / "log").open("wb") as output:
        command = [Path(__file__).with_name("dockerd.sh"), folder]
        daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
        assert daemon.stdin is not None
        try:
            info = ["docker", "--host", host, "info"]
            deadline = time.monotonic() + 60
            while subprocess.run(info, capture_output=True, check=False).returncode != 0:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    words = (folder / "log").read_text(errors="replace").splitlines()
                    why = next((line for line in words if line.startswith("failed")), "it does not answer")
                    pytest.skip(f"dockerd does not start here: {why}")
                time.sleep(0.5)
            yield host
        finally:
            daemon.stdin.close()
            daemon.wait(90)
