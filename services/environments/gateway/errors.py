"""Errors in the form that clients of the OpenAI API read: a status, and a body with message, type, param and code."""

import re
from typing import Any, NamedTuple

from pydantic import ValidationError

from shared import errors

_LONGEST_MESSAGE = 2000  # characters; a value that was sent may be as long as a body
_LONGEST_VALUE = 80
_BODY_UNREAD = (401, 403, 408, 413, 429)  # what comes after the answer would have to be read, or waited for
# As generation names what it refuses: "Generate: sampling.max_tokens is 300; allowed: ...".
_FIELD = re.compile(r"^(?:\w+: )?(?:sampling\.)?([a-z_]+)(?:\[\d+\])?[\w.]* (?:is|are|of roles|holds|holding)\b")
_PROMPT = {"token_ids", "text", "prompt", "messages", "chat"}


class _Kind(NamedTuple):
    status: int
    type: str
    code: str


_KINDS: list[tuple[type[errors.RouterShiftError], _Kind]] = [
    (errors.InvalidInputError, _Kind(400, "invalid_request_error", "invalid_value")),
    (errors.UnauthenticatedError, _Kind(401, "authentication_error", "invalid_api_key")),
    (errors.ForbiddenError, _Kind(403, "permission_error", "insufficient_permissions")),
    (errors.NotFoundError, _Kind(404, "not_found_error", "not_found")),
    (errors.PreconditionError, _Kind(400, "invalid_request_error", "precondition_failed")),
    (errors.OverloadedError, _Kind(429, "rate_limit_error", "rate_limit_exceeded")),
    (errors.UnavailableError, _Kind(503, "service_unavailable_error", "service_unavailable")),
    (errors.DeadlineError, _Kind(504, "timeout_error", "deadline_exceeded")),
]
_INTERNAL = _Kind(500, "api_error", "internal_error")


class ApiError(Exception):
    """What a request is answered with instead of a result."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str = "invalid_value",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Args: kind: `type` of the body; param: the field; retry_after: seconds, told in a header."""
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.retry_after = status, kind, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        message = str(self)[:_LONGEST_MESSAGE]
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": f"{self.retry_after:.3g}"}
        return headers | ({"connection": "close"} if self.status in _BODY_UNREAD else {})


def of_error(error: Exception, prompt_field: str | None = None) -> ApiError:
    """What an error is to a client; the text of one that was not foreseen stays in the log.

    Args:
        prompt_field: what the request calls its prompt: messages or prompt.
    """
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, errors.RouterShiftError):
        return ApiError(
            f"{type(error).__name__} in the gateway; see the service's log",
            status=_INTERNAL.status,
            kind=_INTERNAL.type,
            code=_INTERNAL.code,
        )
    kind = next((kind for known, kind in _KINDS if isinstance(error, known)), _INTERNAL)
    found = _FIELD.match(str(error)) if kind.status == 400 else None
    param = found[1] if found else None
    code = kind.code
    if param in _PROMPT:
        param = prompt_field
        code = "context_length_exceeded" if "long" in str(error) else code
    after = error.retry_after if isinstance(error, errors.OverloadedError) else None
    return ApiError(str(error), status=kind.status, kind=kind.type, code=code, param=param, retry_after=after)


def as_call(error: ApiError) -> errors.RouterShiftError:
    """An error of episodes as gRPC has it."""
    if error.status == 404:
        return errors.NotFoundError(str(error))
    if error.status in (409, 410):
        return errors.PreconditionError(str(error))
    if error.status == 429:
        return errors.OverloadedError(str(error), error.retry_after or 1.0)
    return errors.InvalidInputError(str(error))


def of_validation(error: ValidationError) -> ApiError:
    """The first fault of a body: field, value, and what is allowed."""
    fault = error.errors(include_url=False)[0]
    kind, place = fault["type"], fault["loc"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or None
    if kind == "json_invalid":
        return ApiError(f"the body is no JSON: {fault['msg']}; send one object", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(
            f"{param} is {shown(fault['input'])}, and no field of this request; take it out: what would not be "
            "heeded is refused",
            code="unknown_parameter",
            param=param,
        )
    if kind == "missing":
        return ApiError(f"{param} is missing; set it", code="missing_required_parameter", param=param)
    reason = str(fault["ctx"]["error"]) if kind == "value_error" else fault["msg"]
    return ApiError(f"{param or 'the body'} is {shown(fault['input'])}; {reason}", param=param)


def unsupported(field: str, value: object, fix: str) -> ApiError:
    """A field of the OpenAI API that would change the result, and is not heeded here."""
    return ApiError(f"{field} is {shown(value)}; {fix}", code="unsupported_parameter", param=field)


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value) if len(str(value)[: 4 * _LONGEST_VALUE]) < 4 * _LONGEST_VALUE else str(value)[:_LONGEST_VALUE]
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
