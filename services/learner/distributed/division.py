"""What the ranks of a context group have of a row, and of the attention heads of a layer. Knows no torch."""

from shared.errors import InvalidInputError


def width_of(tokens: int, ranks: int) -> int:
    """Tokens that each rank has of a row; the last ones have what fills it up."""
    return -(-tokens // ranks)


def key_copies(context: int, keys: int) -> int:
    """How often each of `keys` key and value heads is there, so that each of `context` ranks has as many.

    Grouped-query models may have fewer of them than there are ranks: neighbouring ranks then have the same one.
    """
    return max(1, context // keys)


def check_heads(context: int, heads: int, keys: int) -> None:
    """Whether ranks can have equal parts of the heads, each with the keys and values that belong to it.

    Args:
        context: ranks of a group.
        heads: attention heads of a layer.
        keys: its key and value heads, of which `heads` is a multiple.

    Raises:
        InvalidInputError: they cannot; names what would do.
    """
    if _divides(context, heads, keys):
        return
    possible = [str(ranks) for ranks in range(1, heads + 1) if _divides(ranks, heads, keys)]
    raise InvalidInputError(
        f"learner.mesh.context is {context}; it has to divide the {heads} attention heads of a layer, and to divide "
        f"its {keys} key and value heads or be a multiple of them: set it to {' or '.join(possible)}"
    )


def _divides(context: int, heads: int, keys: int) -> bool:
    return heads % context == 0 and (keys % context == 0 or context % keys == 0)
