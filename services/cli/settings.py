"""Settings of the command line: the table [supervisor]."""

from pydantic import Field

from shared.table import Table


class SupervisorSettings(Table):
    """The table [supervisor]: when `routershift up` and `run` start a process again, and when they give up."""

    liveness_seconds: float = Field(30.0, gt=0, description="silence after which a process is killed and replaced")
    backoff_seconds: float = Field(0.5, gt=0, description="wait before the first restart; doubles with every death")
    max_backoff_seconds: float = Field(10.0, gt=0, description="longest wait before a restart")
    max_deaths: int = Field(8, ge=1, description="deaths of one process at which the run is given up; 1: no restarts")
    deaths_seconds: float = Field(300.0, gt=0, description="age at which the deaths of a healthy process are forgotten")
    redis_start_seconds: float = Field(
        300.0, gt=0, description="how long a Redis of our own may take to load its data at its start"
    )
    progress_seconds: float = Field(
        1800.0, gt=0, description="how long `run` waits while nothing moves towards a step before it gives up"
    )
    step_seconds: float = Field(
        7200.0, gt=0, description="how long one step of the learner may take before `run` gives up"
    )
    drain_seconds: float = Field(
        300.0, gt=0, description="how long `run` waits after the last step until nothing is in flight"
    )
