"""Which settings of a recipe's text stand without a comment that explains them."""

import re
from collections.abc import Iterator

_SETTING = re.compile(r"^(?:([\w.-]+)\.)?[\w-]+ = ")  # with the small table of a dotted key, such as lora of lora.rank


def unexplained(recipe: str) -> Iterator[str]:
    """The settings of a recipe, a line each, that have no comment on their line or directly above.

    Settings of one small table, such as `lora.rank` and `lora.alpha`, share the comment above the first of them.
    """
    shares: set[str | None] = set()  # the small tables whose settings the comment above explains
    is_below_comment = False
    for line in recipe.splitlines():
        if setting := _SETTING.match(line):
            if is_below_comment:
                shares = {setting[1]} - {None}
            elif setting[1] not in shares:
                shares = set()
                if "  # " not in line:
                    yield line
        else:
            shares = set()
        is_below_comment = line.startswith("# ")
