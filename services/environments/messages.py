"""Environments on the wire: what they observe, what the model did, and what they are."""

from collections.abc import Sequence

from routershift import wire
from routershift.trajectory import FinishReason
from routershift.v1 import environment_pb2 as env
from routershift.v1 import trajectory_pb2 as pb
from services.environments.base import (
    Action,
    Environment,
    MessagesObservation,
    Observation,
    Step,
    TextObservation,
    ToolCall,
)
from shared.errors import InvalidInputError


def encode_observation(observation: Observation | None) -> env.Observation | None:
    """None where there is none."""
    if observation is None:
        return None
    if isinstance(observation, TextObservation):
        return env.Observation(role=wire.ROLE_CODES[observation.role], text=observation.text)
    if isinstance(observation, MessagesObservation):
        messages = [pb.Message(role=wire.ROLE_CODES[m.role], content=m.content) for m in observation.messages]
        return env.Observation(messages=messages)
    return env.Observation(role=wire.ROLE_CODES[observation.role], token_ids=observation.token_ids)


def encode_step(step: Step) -> env.StepResponse:
    return env.StepResponse(
        observation=encode_observation(step.observation),
        reward=step.reward,
        done=step.is_done or step.observation is None,
        parts=step.parts,
    )


def decode_action(request: env.StepRequest) -> Action:
    """Raises InvalidInputError: a finish reason or tool call that is none; names the field."""
    reason = wire.FINISH_REASONS.get(request.finish_reason, FinishReason.STOP)
    if reason not in (None, FinishReason.STOP, FinishReason.LENGTH):
        raise InvalidInputError(f"finish_reason is {reason}; expected stop, or length where the turn was cut")
    return Action(request.text, reason or FinishReason.STOP, tuple(_tool_calls(request.tool_calls)))


def _tool_calls(calls: Sequence[env.ToolCall]) -> list[ToolCall]:
    made = []
    for i, call in enumerate(calls):
        if not call.error and not call.HasField("arguments"):
            raise InvalidInputError(f"tool_calls[{i}] has neither arguments nor error; set one of them")
        arguments = None if call.error else wire.decode_struct(call.arguments)
        made.append(ToolCall(call.id, call.name, arguments, call.error))
    if len({call.id for call in made}) < len(made):
        raise InvalidInputError("tool_calls have the same id twice; each has one of its own in its episode")
    return made


def encode_environment(name: str, environment: Environment) -> env.Environment:
    """Args: name: in the recipe."""
    return env.Environment(
        name=name,
        version=environment.version,
        description=environment.description,
        task_schema=wire.encode_struct(environment.task_schema),
        tools=[wire.encode_struct(tool) for tool in environment.tools],
        stop=environment.stop,
        rewards=environment.rewards,
    )
