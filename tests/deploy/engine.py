"""A container engine for the tests, with images where no registry is in reach.

`Engine.open` takes the engine that answers, else starts a dockerd of its own where that is possible. Of what the
compose file pulls (Redis, Prometheus, Alertmanager, the Python base) it pulls what it can; for the rest it makes
stand-ins with the same names from Debian packages, which are other versions of the same programs.
"""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
REQUIREMENTS = ROOT / "deploy" / "docker" / "requirements"
PYTHON_IMAGE = "python:3.11-slim-bookworm"
_PACKAGES = (
    "apt-get install --no-install-recommends docker.io docker-compose mmdebstrap prometheus prometheus-alertmanager"
)
_QUIET = ["path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/doc/*"]

_LOCKS = {
    "curriculum": ["core", "reward"],
    "reward": ["core", "reward"],
    "learner": ["core", "reward", "torch"],
    "generation-cpu": ["core", "reward", "torch", "vllm"],
}  # the builder makes every stage above a target too

_STAND_INS: dict[str, tuple[dict[str, str], str]] = {
    "redis:7.2-bookworm": (
        {},
        'RUN install -d -o 999 -g 999 /data\nWORKDIR /data\nUSER 999:999\nCMD ["redis-server"]\n',
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

    def __init__(self, folder: Path, environment: dict[str, str], index: str) -> None:
        self._folder = folder
        self._wheels = folder / "wheels"
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", **environment}
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
            yield cls(folder, environment, stack.enter_context(_index(folder / "wheels")))

    def docker(self, *arguments: str) -> str:
        """What the command prints; its errors are those of the test."""
        return self.run(["docker", *arguments])

    def compose(self, *arguments: str) -> str:
        command = compose_command()
        assert command is not None
        return self.run([*command, *arguments])

    def run(self, command: Sequence[str], given: str | None = None) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def prepare(self) -> None:
        """Bases and what the compose file pulls."""
        if not self._has(PYTHON_IMAGE):
            plain = self._debian("plain", ["python3", "ca-certificates", "tini"])
            self._arguments += [f"--build-arg=BASE_IMAGE={plain}"]
            building = self._debian("building", ["python3", "python3-venv", "ca-certificates"])
            self._arguments += [f"--build-arg=BUILD_IMAGE={building}"]
            for name, (programs, recipe) in _STAND_INS.items():
                if not self._has(name):
                    base = self._debian("redis", ["redis-server"]) if name.startswith("redis") else plain
                    self._stand_in(name, base, programs, recipe)

    def build(self, target: str) -> str:
        """Builds a target of the Dockerfile from packages that this machine's pip can get; gives its name."""
        name = f"routershift/{target}:latest"
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        for lock in _LOCKS[target]:
            self.run([*download, "--dest", str(self._wheels), "--requirement", str(REQUIREMENTS / f"{lock}.txt")])
        options = ["--network=host", f"--target={target}", f"--tag={name}", *self._arguments]
        self.docker("build", *options, f"--file={DOCKERFILE}", ".")
        return name

    def _has(self, name: str) -> bool:
        """Whether the image is here, or a registry gave it."""
        for command in (["image", "inspect"], ["pull", "--quiet"]):
            done = subprocess.run(["docker", *command, name], env=self.environment, capture_output=True, check=False)
            if done.returncode == 0:
                return True
        return False

    def _debian(self, name: str, packages: Sequence[str]) -> str:
        """A base from Debian's packages."""
        if shutil.which("mmdebstrap") is None:
            pytest.skip(f"no registry is in reach, and no mmdebstrap to make a base: {_PACKAGES}")
        tag, tar = f"routershift-test/{name}:latest", self._folder / f"{name}.tar"
        if not self._here(tag):
            self.run([
                "mmdebstrap", "--variant=minbase", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                f"--include={','.join(['usr-is-merged', *packages])}", *(f"--dpkgopt={option}" for option in _QUIET),
                "bookworm", str(tar),
            ])  # fmt: skip
            self.docker("import", str(tar), tag)
            tar.unlink()
        return tag

    def _here(self, name: str) -> bool:
        inspect = ["docker", "image", "inspect", name]
        return subprocess.run(inspect, env=self.environment, capture_output=True, check=False).returncode == 0

    def _stand_in(self, name: str, base: str, programs: dict[str, str], recipe: str) -> None:
        context = self._folder / name.replace("/", "-").replace(":", "-")
        context.mkdir(parents=True, exist_ok=True)
        lines = [f"FROM {base}"]
        for program, place in programs.items():
            shutil.copy(_program(program), context / Path(place).name)
            lines.append(f"COPY {Path(place).name} /{place}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n" + recipe)
        self.docker("build", "--tag", name, str(context))


@contextlib.contextmanager
def _index(wheels: Path) -> Iterator[str]:
    """Wheels on a port of ours: builds see this machine's package index, wherever that is."""
    wheels.mkdir(exist_ok=True)
    handler = functools.partial(_Silent, directory=str(wheels))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
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
    folder.mkdir(parents=True, exist_ok=True)
    host = f"unix://{folder}/engine.sock"
    command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-H", host]
    with (folder / "log").open("wb") as output:
        daemon = subprocess.Popen([*command, "--pidfile", f"{folder}/pid"], stdout=output, stderr=output)
        try:
            info = ["docker", "--host", host, "info"]
            until(
                f"dockerd answers; see {folder}/log",
                lambda: subprocess.run(info, capture_output=True, check=False).returncode == 0,
                60,
            )
            yield host
        finally:
            daemon.terminate()
            daemon.wait(60)
