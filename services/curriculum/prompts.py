"""The message that puts a problem to generation, or to an environment."""

from routershift import wire
from routershift.trajectory import Role
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.problems import Problem
from shared.settings import RolloutSettings, RunSettings


def put(problem: Problem, run_id: str, prompt_id: str, sampling: pb.SamplingParams) -> pb.Prompt:
    """A problem as a prompt, to be sampled for in this way."""
    prompt = pb.Prompt(
        run_id=run_id,
        prompt_id=prompt_id,
        text=problem.prompt,
        token_ids=() if problem.messages else problem.token_ids,
        messages=[
            pb.Message(role=wire.ROLE_CODES[Role(message["role"])], content=message["content"])
            for message in problem.messages
        ],
        problem_id=problem.id,
        verifier=problem.verifier,
        environment=problem.environment,
        reference=wire.encode_struct(problem.reference),
        sampling=sampling,
    )
    prompt.created_at.GetCurrentTime()
    return prompt


def make_prompt(index: int, problem: Problem, run: RunSettings, rollout: RolloutSettings) -> pb.Prompt:
    """Prompt `index` of a run, counted from 0, as it is admitted now."""
    sampling = pb.SamplingParams(
        n=rollout.n,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        stop=rollout.stop,
        # A sample's seed is its place in the run; 2^40 samples keep the seeds of two runs apart.
        seed=(run.seed << 40) + index * rollout.n,
    )
    return put(problem, run.id, f"{index:08d}", sampling)
