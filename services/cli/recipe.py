"""A whole recipe: the tables of every service at once, for the commands that need to know all of them."""

from services.cli.settings import SupervisorSettings
from services.curriculum.settings import Settings as CurriculumTables
from services.curriculum.tasks.registry import tasks
from services.environments.settings import Settings as EnvironmentsTables
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared.settings import SERVICES, ServerSettings


class Recipe(CurriculumTables, GenerationTables, EnvironmentsTables, LearnerTables, RewardTables):
    """All tables. Its order of strength and its errors are those of `shared.recipes.load`."""

    supervisor: SupervisorSettings = SupervisorSettings()

    def server(self, service: str) -> ServerSettings:
        """The table of a service."""
        servers: dict[str, ServerSettings] = {name: getattr(self, name) for name in SERVICES}
        return servers[service]

    @property
    def services(self) -> tuple[str, ...]:
        """The services that this run needs: that of environments only where something asks for one.

        Raises:
            PreconditionError: an entry point of tasks that does not load.
        """
        return tuple(name for name in SERVICES if name != "environments" or self.has_environments)

    @property
    def has_environments(self) -> bool:
        """Whether a prompt or a held-out problem has an environment, or the recipe has a table of one; or the
        gateway is served."""
        if (
            self.environments.gateway.enabled
            or self.environments.named
            or any(source.environment for source in (*self.data.train, *self.data.eval))
        ):
            return True
        task = tasks().get(self.run.task) if self.run.task else None
        return bool(task and task.environment)

    @property
    def names_redis(self) -> bool:
        """Whether a Redis is named, so that none of our own is started."""
        return "url" in self.redis.model_fields_set
