"""The calculator task: Countdown problems, with a calculator to try expressions on before one is the answer."""

from typing import ClassVar

from services.curriculum.tasks.countdown import Countdown


class Calculator(Countdown):
    """Numbers and targets beyond those of Countdown: too large for a tiny model to be sure of without trying."""

    name: ClassVar[str] = "calculator"
    environment: ClassVar[str] = "calculator"

    def __init__(self, seed: int, max_number: int = 20, max_target: int = 99) -> None:
        super().__init__(seed, max_number, max_target)
