"""The program of a response: fences by CommonMark, thoughts left out, in time linear in the response."""

import time

import pytest

from services.reward.verifiers.code.extraction import extract

RIGHT = "print(1)\n"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\nprint(2)", "print(1)\nprint(2)"),
        # Info strings and line ends
        ("```python\r\nprint(1)\r\n```\r\n", RIGHT),
        ("```python title=x\nprint(1)\n```", RIGHT),
        ('``` {.python title="a"}\nprint(1)\n```', RIGHT),
        ("```Python3\nprint(1)\n```", RIGHT),
        # Other fences
        ("~~~python\nprint(1)\n~~~", RIGHT),
        ("~~~~\nprint('''\n~~~\n''')\n~~~~", "print('''\n~~~\n''')\n"),
        ("````python\nprint('''\n```\n''')\n````", "print('''\n```\n''')\n"),
        ("```python\nprint('''\n    ```\n''')\n```", "print('''\n    ```\n''')\n"),  # indented by four: no end
        ("```python\nprint('''\n```text\n''')\n```", "print('''\n```text\n''')\n"),  # an end has no info string
        ("Use ```print(0)``` or:\n```\nprint(1)\n```", RIGHT),
        # In lists, quotes and tags
        ("1. So:\n\n   ```python\n   if 1:\n       print(1)\n   ```\n", "if 1:\n    print(1)\n"),
        ("* So:\n\n    ```python\n    print(1)\n    ```\n", RIGHT),
        ("- ```python\n  print(1)\n  ```\n", RIGHT),
        ("10) a\n    ```python\n\tprint(1)\n    ```\n", RIGHT),
        ("> ```python\n> print(1)\n> ```\n", RIGHT),
        ("> ```python\n> print(1)\n\nSaid he.", RIGHT),
        ("<answer>\n```python\nprint(1)\n```\n</answer>", RIGHT),
        # Which of several
        ("```python\nprint(1)\n```\nRun it:\n```bash\npython main.py\n```", RIGHT),
        ("```\nprint(1)\n```\n```console\n$ python main.py\n```", RIGHT),
        ("```python\nprint(1)\n```\nIt prints:\n```\n1\n```", RIGHT),
        ("```python\nprint(1)\n```\nIt prints:\n```\nHello there\n```", RIGHT),
        ("```python\nprint(0)\n```\nOr rather:\n```\nprint(1)\n```", RIGHT),
        ("```python\nprint(0)\n```\nOr rather:\n```py\nprint(1)\n```", RIGHT),
        ("```text\nprint(1)\n```", RIGHT),  # there is no other
        # Thoughts
        ("<think>\n```python\nprint(1)\n```", ""),
        ("<think>So print(1)", ""),
        ("<think>a</think>b<think>\n```python\nprint(1)\n```", ""),
        ("It may be\n```python\nprint(0)\n```\nbut no</think>\n```python\nprint(1)\n```", RIGHT),
        ("<think>\n```python\nprint(0)\n</think>\n```python\nprint(1)\n```", RIGHT),
        ("<think>\n```python\nprint(0)\n```</think>\n```python\nprint(1)\n```", RIGHT),
        ("```python\nprint(0)\n```\nThat is it.</think>", ""),
        ('```python\nprint("</think>")\n```', 'print("</think>")\n'),
        ('<think>a</think>\n```python\nprint("<think></think>")\n```', 'print("<think></think>")\n'),
        ('print("</think>")', 'print("</think>")'),
        ('<think>a</think>print("</think>")', 'print("</think>")'),
        ('print("It ended: </think> was it")', 'print("It ended: </think> was it")'),
        ('```python\ns = "a<think>b</think>c"\n```', 's = "a<think>b</think>c"\n'),
        ("[THINK]\n```python\nprint(0)\n[/THINK]\n```python\nprint('[/THINK]')\n```", "print('[/THINK]')\n"),
        ("<thinking>\n```python\nprint(1)\n```", ""),
    ],
)
def test_the_program_of_a_response(response: str, program: str) -> None:
    assert extract(response) == program


def test_another_language_has_its_own_labels() -> None:
    response = "```ruby\nputs 1\n```\nor\n```sh\necho 1\n```"
    assert extract(response, ("ruby",)) == "puts 1\n"
    assert extract(response, ()) == "echo 1\n"


@pytest.mark.parametrize(
    "pattern",
    [
        "```{} x", "> {}", "{}```\n{}", "`{}", "<think>{}", "```\n{}", "- {}```", "1. {}", "~~~{}\n", "{}</think>",
        "({})</think>x", "\t{}", "```python\n{}\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("unit", [" ", "`", "> ", "```\n", "<think>", "</think>", "- ", "\t", "(", "\r", "1. ", "~"])
def test_its_time_is_linear_in_the_response(pattern: str, unit: str) -> None:
    """Doubling what is repeated ten times over would take a quadratic reader a hundred times as long."""

    def seconds(repeats: int) -> float:
        response = pattern.replace("{}", unit * repeats)
        began = time.process_time()
        extract(response)
        return time.process_time() - began

    small = min(seconds(3_000) for _ in range(3))
    # Another one if it was disturbed.
    assert any(seconds(30_000) < 40 * small + 0.5 for _ in range(4))
