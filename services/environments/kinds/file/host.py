"""A process that runs the environments of one file. `python -m services.environments.kinds.file.host PARENT`.

One line of JSON comes in: the settings of `FileEnvironment`, and the socket to listen at. One goes out: {"error": why
it cannot run, or null}. Then it serves the gRPC EnvironmentService until it is killed.
"""

import asyncio
import json
import os
import sys
from typing import Any

import grpc
import setproctitle

from routershift.v1 import environment_pb2_grpc as env_grpc
from services.environments.base import Environment
from services.environments.hosting import HostedEpisodes
from services.environments.kinds.file.loading import load
from services.environments.kinds.file.settings import NAME, FileSettings
from services.environments.registry import Configured
from services.environments.server import EnvironmentsServicer
from services.environments.settings import EnvironmentsSettings
from shared.errors import RouterShiftError
from shared.kinds import settings_of
from shared.process.orphans import die_with_parent
from shared.rpc.access import AccessControl
from shared.rpc.guard import Guard
from shared.settings import AccessSettings, ServerSettings
from shared.user_module import raised

_ANY_TOKEN = 1 << 31  # the vocabulary is known where the episode is played, and observations are checked there again


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # what the file prints goes to the log
    order = json.loads(sys.stdin.buffer.readline())
    settings = FileSettings.model_validate(order["settings"])
    setproctitle.setproctitle(f"routershift environment {settings.file}")
    try:
        configured = _configured(settings)
    except BaseException as error:  # whatever the file does
        said = str(error) if isinstance(error, RouterShiftError) else f"{settings.file}: {raised(error)}"
        os.write(answers, json.dumps({"error": said}).encode() + b"\n")
        os._exit(1)  # threads that the file has started do not keep us
    asyncio.run(_serve(configured, settings, order["socket"], answers))


def _configured(settings: FileSettings) -> Configured:
    kind: type[Environment] = load(settings.file, settings.source or "", settings.class_name)
    own = settings_of("settings", kind.Settings, settings.settings)
    configured = Configured(NAME, kind, own)
    configured.make()
    return configured


async def _serve(configured: Configured, settings: FileSettings, socket: str, answers: int) -> None:
    limits: dict[str, Any] = {
        "turn_seconds": settings.answer_seconds,
        "observation_tokens": settings.observation_tokens,
    }
    table = EnvironmentsSettings(**limits)
    control = AccessControl(AccessSettings(), ServerSettings())
    server = grpc.aio.server(interceptors=[Guard(control, ServerSettings())])
    servicer = EnvironmentsServicer({NAME: configured}, table)
    env_grpc.add_EnvironmentServiceServicer_to_server(servicer, server)
    hosted = HostedEpisodes({NAME: configured}, table, _ANY_TOKEN)
    servicer.open(hosted)
    server.add_insecure_port(f"unix:{socket}")  # in a folder that only this user can enter
    await server.start()
    watching = asyncio.create_task(hosted.watch())
    os.write(answers, json.dumps({"error": None}).encode() + b"\n")
    os.close(answers)
    await server.wait_for_termination()
    watching.cancel()


if __name__ == "__main__":
    main()
