"""The program of a response."""

import ast
from collections.abc import Sequence

from services.reward.verifiers import fences
from services.reward.verifiers.fences import Block
from services.reward.verifiers.thoughts import without

PYTHON = ("python", "python3", "python2", "py", "py3", "ipython", "ipython3", "sage")
_MAX_PARSED = 1 << 16  # characters: beyond, a text is not tried as Python


def extract(response: str, languages: Sequence[str] = PYTHON, answer: str | None = None) -> str:
    """The last fenced block of what follows the thoughts, or all of that where it has no block.

    Blocks of these languages, and blocks that name none, come before blocks of another language. After a block that
    names Python, one that names none counts only if it is a program: it may be an example of the output.

    Args:
        languages: labels of blocks, in lower case; none: any block will do.
        answer: what of the response is no thought, where that is known.
    """
    answer = without(response) if answer is None else answer
    blocks = fences.blocks(answer)
    if not blocks:
        # A response that is Python as a whole has no thoughts, only text that looks like their tags.
        return response if answer != response and PYTHON[0] in languages and _parsed(response) else answer
    wanted = [block for block in blocks if block.language in languages]
    usable = [b for b in blocks if b.language in languages or (not b.language and not (wanted and _is_output(b)))]
    return (usable if languages and usable else blocks)[-1].text


def _is_output(block: Block) -> bool:
    """No Python, or nothing but constants."""
    tree = _parsed(block.text)
    if tree is None:
        return True
    parts = (ast.Expr, ast.expr_context, ast.unaryop, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp)
    return all(isinstance(node, (ast.Module, *parts)) for node in ast.walk(tree))


def _parsed(text: str) -> ast.Module | None:
    if len(text) > _MAX_PARSED:
        return None
    try:
        return ast.parse(text.strip("\n"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
