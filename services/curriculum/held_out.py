"""How held-out problems are answered: the settings that every set of them has."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from routershift.client.requests import Sampling
from shared.sampling import MAX_SAMPLES, MAX_TEMPERATURE, MIN_TEMPERATURE
from shared.settings import RolloutSettings, StopTexts
from shared.table import Table

_GREEDY = 0.0  # temperature at which generation takes the likeliest token

# Whole numbers, which environment and flags write as 2,4.
Ks = Annotated[tuple[int, ...], BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)]


class EvaluationSampling(Table):
    """How responses to held-out problems are sampled. What is not set is as in [rollout]."""

    n: int = Field(2, ge=1, le=MAX_SAMPLES, description="sampled responses to each problem")
    temperature: float | None = Field(
        None, ge=0, le=MAX_TEMPERATURE, description="0: greedy, then n is 1; default: rollout.temperature"
    )
    greedy: bool = Field(True, description="whether one more response is of the likeliest tokens")
    max_tokens: int | None = Field(None, ge=1, description="longest response; default: rollout.max_tokens")
    stop: StopTexts | None = Field(None, description="texts that end a response; default: rollout.stop")
    top_p: float = Field(1.0, gt=0, le=1, description="mass of the likeliest tokens that are sampled from")
    top_k: int = Field(0, ge=0, description="likeliest tokens that are sampled from; 0: all")
    min_p: float = Field(0.0, ge=0, le=1, description="tokens less likely than this times the likeliest are left out")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        temperature = self.temperature
        if temperature is not None and 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature}; take 0 (greedy), or {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
            )
        if temperature == 0 and self.n > 1:
            raise ValueError(f"temperature 0 gives one response, n times the same: n is {self.n}, set it to 1")
        return self

    def requests(self, rollout: RolloutSettings) -> list[Sampling]:
        """What generation is asked for each problem: the n sampled responses and, where one is wanted, the greedy."""
        limits = Sampling(
            max_tokens=rollout.max_tokens if self.max_tokens is None else self.max_tokens,
            stop=rollout.stop if self.stop is None else self.stop,
        )
        temperature = rollout.temperature if self.temperature is None else self.temperature
        sampled = Sampling(n=self.n, temperature=temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)
        greedy = Sampling(n=1, temperature=_GREEDY)
        # One that is sampled greedily needs no other.
        return [sampled | limits] + ([greedy | limits] if self.greedy and temperature != _GREEDY else [])


class HeldOutSettings(Table):
    """What one held-out set has of its own."""

    problems: int = Field(512, ge=1, description="most problems of an evaluation")
    sampling: EvaluationSampling = EvaluationSampling()
    pass_at_k: Ks | None = Field(
        None, description="each k of pass@k, at most sampling.n, as in 2,4; default: the powers of two from 2"
    )

    @property
    def pass_at(self) -> tuple[int, ...]:
        """The k of every pass@k that an evaluation measures beside pass@1."""
        powers = tuple(2**i for i in range(1, self.sampling.n.bit_length()))
        return powers if self.pass_at_k is None else self.pass_at_k

    @model_validator(mode="after")
    def _is_sampled_often_enough(self) -> Self:
        most = self.sampling.n
        if wrong := [k for k in self.pass_at_k or () if not 1 <= k <= most]:
            raise ValueError(f"pass_at_k holds {wrong[0]}; each k must be 1 to {most}, which is sampling.n")
        return self
