"""Tells the learner of a run to rest or to go on, from outside."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from routershift.v1 import learner_pb2 as lrn
from services.cli.endpoints import Endpoints
from services.cli.folders import run_folder
from services.cli.provenance.stored import RECIPE
from shared.clients import LearnerClient
from shared.errors import DeadlineError, PreconditionError, UnavailableError
from shared.recipes import load
from shared.settings import BaseSettings

_ANSWER_SECONDS = 10.0  # in which a learner that is there says what it does, whatever it computes


@contextlib.asynccontextmanager
async def learner_of(name: str, flags: Sequence[str], timeout: float) -> AsyncIterator[LearnerClient]:
    """A client of a run's learner, after that was asked whether it trains this run.

    The table [access] is that of the run's recipe, then of the environment, then of flags: a token must be for the role
    `operate`.

    Args:
        name: a run's folder or id.
        timeout: deadline of a call, in seconds.

    Raises:
        NotFoundError: no such run, or it was never started.
        PreconditionError: it is not running, or has finished.
        UnauthenticatedError, ForbiddenError: its learner asks for another token.
    """
    folder = run_folder(name)
    endpoints = Endpoints.read(folder)
    run, address = endpoints.run, endpoints.grpc("learner")
    recipe = folder / RECIPE
    if recipe.is_file():
        access = load(BaseSettings, recipe, os.environ, flags).access
    else:  # of a run that was made by `serve` alone; a model is asked for, and is of no concern here
        access = load(BaseSettings, None, os.environ, [*flags, "run.model=./none"]).access
    async with LearnerClient(address, _ANSWER_SECONDS, access) as learner:
        try:
            status = await learner.status()
        except (UnavailableError, DeadlineError) as error:
            raise PreconditionError(f"run {run} is not running: its learner does not answer at {address}") from error
        if status.run_id != run:
            raise PreconditionError(f"run {run} is not running: at {address} is now the learner of run {status.run_id}")
        if status.phase == lrn.LEARNER_PHASE_FINISHED:
            raise PreconditionError(f"run {run} has finished, after {status.step} steps")
    async with LearnerClient(address, timeout, access) as learner:
        yield learner
