"""Where a run's prompts come from: the task that run.task names, or the sources of the tables [[data.train]]."""

from services.curriculum.data.dataset import DataProblems
from services.curriculum.problems import Problems, TaskProblems
from services.curriculum.settings import Settings
from services.curriculum.tasks.registry import make_task
from shared.errors import InvalidInputError

NO_PROMPTS = "run.task is unset, and there is no table [[data.train]]; set one of both, as run.task = 'countdown'"


def make_problems(settings: Settings) -> Problems:
    """Makes the task, or reads and checks every row of the data, which may take minutes.

    Raises:
        NotFoundError: no such task, file or data set.
        InvalidInputError, CorruptDataError, PreconditionError: data that cannot be used; names file, row and column.
        MissingDependencyError: a package that reads a source is not installed.
    """
    if settings.run.task is not None:
        return TaskProblems(make_task(settings.run.task, settings.run.seed), settings)
    if not settings.data.train:
        raise InvalidInputError(NO_PROMPTS)
    return DataProblems(settings)
