"""A whole recipe: the tables of every service at once, for the commands that need to know all of them."""

from services.cli.settings import SupervisorSettings
from services.curriculum.settings import Settings as CurriculumTables
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared.settings import SERVICES, ServerSettings


class Recipe(CurriculumTables, GenerationTables, LearnerTables, RewardTables):
    """All tables. Its order of strength and its errors are those of `shared.recipes.load`."""

    supervisor: SupervisorSettings = SupervisorSettings()

    def server(self, service: str) -> ServerSettings:
        """The table of a service."""
        servers: dict[str, ServerSettings] = {name: getattr(self, name) for name in SERVICES}
        return servers[service]

    @property
    def names_redis(self) -> bool:
        """Whether a Redis is named, so that none of our own is started."""
        return "url" in self.redis.model_fields_set
