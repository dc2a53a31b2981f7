"""A calculator that the policy may ask before it answers."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from routershift.trajectory import Role
from services.environments.base import Action, Environment, EnvironmentSettings, Step, TextObservation
from shared.arithmetic import ExpressionError, evaluate


class CalculatorSettings(EnvironmentSettings):
    """How the policy asks, and how it is answered."""

    ask: str = Field("?", min_length=1, max_length=16, description="text with which a turn ends that asks for a value")
    end: str = Field(";", max_length=16, description="text behind each value")
    error: str = Field("error", min_length=1, max_length=64, description="the value of what is no expression")
    checks: int = Field(
        8, ge=0, description="values that the policy may ask for; a turn that asks for more is the last"
    )


class CalculatorEnvironment(Environment):
    """A turn that ends with `ask` is an expression, and is answered with its value: `3*7+5?` with `26;`.

    Any other turn is the answer, with which the episode is done. A verifier judges that, such as `countdown`.
    Expressions are over whole numbers, with + - * and ().
    """

    name = "calculator"
    version = "1"
    description = "answers expressions that end with a question mark with their value, until one does not"
    rewards = False
    Settings = CalculatorSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        self._settings = settings if isinstance(settings, CalculatorSettings) else CalculatorSettings()
        self.stop = (self._settings.ask,)
        self._checks = 0

    async def reset(self, task: Mapping[str, Any], seed: int) -> None:
        return None

    async def step(self, action: Action) -> Step:
        settings = self._settings
        if not action.text.endswith(settings.ask) or self._checks == settings.checks:
            return Step(is_done=True)
        self._checks += 1
        try:
            value = str(evaluate(action.text.removesuffix(settings.ask))[0])
        except ExpressionError:
            value = settings.error
        return Step(TextObservation(f"{value}{settings.end}", Role.TOOL))
