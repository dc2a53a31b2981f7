"""Between protobuf messages and numpy domain types: the only place that knows both.

Reading is zero-copy and checks everything that a wrong or hostile sender could get wrong; a message that fails
raises CorruptDataError with the field, the value and what was expected.
"""

from routershift.wire.completions import (
    FINISH_REASONS,
    decode_completion,
    decode_special_tokens,
    encode_completion,
    encode_special_tokens,
)
from routershift.wire.structs import (
    decode_struct,
    encode_struct,
)
from routershift.wire.tensors import (
    decode_tensor,
    encode_tensor,
)
from routershift.wire.traces import (
    ROUTER_EXPORT_CODES,
    decode_layout,
    decode_trace,
    encode_layout,
    encode_trace,
)
from routershift.wire.trajectories import (
    ROLE_CODES,
    ROLES,
    decode_segments,
    decode_trajectory,
    encode_scores,
    encode_trajectory,
    newest_version,
    oldest_version,
    parse_group,
)

__all__ = [
    "FINISH_REASONS",
    "ROLES",
    "ROLE_CODES",
    "ROUTER_EXPORT_CODES",
    "decode_completion",
    "decode_layout",
    "decode_segments",
    "decode_special_tokens",
    "decode_struct",
    "decode_tensor",
    "decode_trace",
    "decode_trajectory",
    "encode_completion",
    "encode_layout",
    "encode_scores",
    "encode_special_tokens",
    "encode_struct",
    "encode_tensor",
    "encode_trace",
    "encode_trajectory",
    "newest_version",
    "oldest_version",
    "parse_group",
]
