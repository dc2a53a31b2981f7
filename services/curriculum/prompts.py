"""The message that puts a problem to generation."""

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.problems import Problem
from shared.settings import RolloutSettings, RunSettings


def make_prompt(index: int, problem: Problem, run: RunSettings, rollout: RolloutSettings) -> pb.Prompt:
    """Prompt `index` of a run, counted from 0, as it is admitted now."""
    prompt = pb.Prompt(
        run_id=run.id,
        prompt_id=f"{index:08d}",
        text=problem.prompt,
        token_ids=problem.token_ids,
        problem_id=problem.id,
        verifier=problem.verifier,
        reference=wire.encode_struct(problem.reference),
        sampling=pb.SamplingParams(
            n=rollout.n,
            temperature=rollout.temperature,
            max_tokens=rollout.max_tokens,
            stop=rollout.stop,
            # A sample's seed is its place in the run; 2^40 samples keep the seeds of two runs apart.
            seed=(run.seed << 40) + index * rollout.n,
        ),
    )
    prompt.created_at.GetCurrentTime()
    return prompt
