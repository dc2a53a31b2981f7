"""Where the services of a run answer: written by `run` and `up`, read by people and by the commands that look in."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import NotFoundError, PreconditionError
from shared.files import write_durably
from shared.tracking import records

REDIS_URL = "REDIS_URL"  # in the place of a URL that may hold a password: the variable of the environment that has it


class Addresses(BaseModel):
    model_config = ConfigDict(frozen=True)

    grpc: str  # HOST:PORT
    metrics: str  # URL


class Endpoints(BaseModel):
    model_config = ConfigDict(frozen=True)

    run: str
    redis: str  # its URL, or REDIS_URL
    services: dict[str, Addresses]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of a run, from its folder.

        Raises:
            NotFoundError: the run was never started.
            PreconditionError: they are not what `write` wrote.
        """
        file = folder / records.ENDPOINTS
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"{file} does not exist; was the run started by `routershift up` or `run`?") from None
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise PreconditionError(f"{file}: {where}{': ' * bool(where)}{fault['msg']}; start the run again") from None

    def write(self, folder: Path) -> None:
        write_durably(folder / records.ENDPOINTS, self.model_dump_json(indent=2) + "\n")

    def grpc(self, service: str) -> str:
        """HOST:PORT of a service. Raises NotFoundError where the run has none of this name."""
        if service not in self.services:
            raise NotFoundError(f"run {self.run} has no service {service}; it has {', '.join(self.services)}")
        return self.services[service].grpc
