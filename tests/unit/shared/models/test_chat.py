"""Chat templates that fail, recurse or do not end."""

from pathlib import Path

import pytest

from shared.errors import InvalidInputError
from shared.models.chat import ChatTemplate
from tests.support.models import build_tokenizer

MESSAGES = [{"role": "user", "content": "3,7:10"}]
LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
TWO = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}"


def rendered(template: str) -> str:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, Path("model")).render(MESSAGES)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 1 // messages[0].content|int(0) }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'x' * 10 ** 18 }}", "MemoryError|OverflowError"),
        ("{{ range(10 ** 9)|list }}", "OverflowError: Range too big"),
        ("{{ messages[3].content }}", "UndefinedError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ raise_exception('no\nsuch\nrole') }}", "no such role"),
        ("{{ strftime_now(3) }}", "TypeError"),
        ("{% if %}", "TemplateSyntaxError"),
        (LOOP, "has not ended after 1000000 steps"),
        (TWO, "has not ended after 1000000 steps"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_template_raises_is_the_callers_to_read(template: str, text: str) -> None:
    with pytest.raises(
        InvalidInputError, match=f"of roles user are refused by the chat template.*: .*({text})"
    ) as caught:
        rendered(template)
    assert "\n" not in str(caught.value)


def test_a_long_conversation_is_rendered() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}\n{% endfor %}"
    assert (
        ChatTemplate(tokenizer, Path("model")).render([{"role": "user", "content": "1"}] * 10_000).count("1") == 10_000
    )
