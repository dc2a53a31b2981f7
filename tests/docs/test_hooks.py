"""Links between files of the repository, as the pages of the site have them."""

from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install -r deploy/locks/docs.txt")
    pytest.importorskip("latex2mathml", reason="no latex2mathml: pip install -r deploy/locks/docs.txt")
    from deploy.site import hooks

    return hooks


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](write-a-reward.md#where)", "[a](write-a-reward.md#where)"),
        ("[a](../../services/learner/README.md#models)", "[a](../explanation/learner.md#models)"),
        ("[a](../../README.md#two-commands)", "[a](../index.md#two-commands)"),
        ("[map](../README.md)", "[map](../index.md)"),
        ("![a picture](../images/drift.png)", "![a picture](../images/drift.png)"),
        ("[shift.py](../../proto/routershift/routing/shift.py)", "`proto/routershift/routing/shift.py`"),
        ("[the one table](../../proto/routershift/routing/families.py)",
         "the one table (`proto/routershift/routing/families.py`)"),
        ("[`tests/contract`](../../tests/contract)", "`tests/contract`"),
        ("[gone](../../services/gone.md)", "[gone](../../services/gone.md)"),
        ("[paper](https://arxiv.org/abs/2510.23027)", "[paper](https://arxiv.org/abs/2510.23027)"),
        ("[below](#ports)", "[below](#ports)"),
    ],
)  # fmt: skip
def test_links_of_a_page_in_docs(hooks: ModuleType, written: str, shown: str) -> None:
    assert hooks.links(f"See {written}.", "docs/how-to/run.md", "how-to/run.md") == f"See {shown}."


def test_links_of_a_page_beside_the_code(hooks: ModuleType) -> None:
    text = "[a](../../docs/glossary.md), [b](../generation/README.md), [isolation.py](model/isolation.py)"
    shown = "[a](../glossary.md), [b](generation.md), `services/learner/model/isolation.py`"
    assert hooks.links(text, "services/learner/README.md", "explanation/learner.md") == shown


def test_fenced_blocks_stay_as_they_are(hooks: ModuleType) -> None:
    page = "{0}\n```sh\na\n```\n{0}\n  ~~~\n  a\n  ~~~\n{0}\n"
    assert hooks.outside_fences(page.format("a"), lambda text: text.replace("a", "b")) == page.format("b")


def test_a_formula_is_mathml(hooks: ModuleType) -> None:
    inline = hooks.formula(r"\gamma &lt; 1", is_block=False)
    assert inline.startswith("<math")
    assert "&#x003B3;" in inline or "γ" in inline
    assert hooks.formula("x", is_block=True).startswith('<div class="formula"><math')
