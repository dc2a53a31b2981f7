"""The verifier `reasoning_gym`: data sets' own scorers, which evaluate nothing that a model or a row says."""

import ast
import copy
import inspect
import sys
from typing import Any

import pytest

from routershift import wire
from services.curriculum.data.items import plain
from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, Verdict, VerifierError
from services.reward.verifiers.reasoning_gym import ReasoningGymVerifier, _Guard, _task
from services.reward.verifiers.registry import make_verifiers
from shared import procedural
from shared.errors import InvalidInputError, MissingDependencyError

NAMES = ["chain_sum", "arc_agi", "rearc", "boxnet", "coin_flip", "game_of_life", "prime_factorization", "word_ladder",
         "rubiks_cube", "propositional_logic", "sudoku", "family_relationships", "gsm_symbolic", "acre"]  # fmt: skip
HOSTILE = ["", " ", "5", "-1", "1e999", "nan", "[[1, 2]]", '{"a": 1}', "__import__('os').abort()", "1/0",
           "((((" * 500, "[" * 5000, "9" * 20_000, "9**9**9", "\x00", "None", "<answer>", "<answer></answer>",
           "é\n" * 300, r"\boxed{", "x" * 100_000]  # fmt: skip


@pytest.fixture(scope="module")
def verifier() -> ReasoningGymVerifier:
    made = make_verifiers({})["reasoning_gym"]
    assert isinstance(made, ReasoningGymVerifier)
    made.start()
    return made


def reference(name: str, index: int = 0, **config: Any) -> dict[str, Any]:
    """As it comes out of a message."""
    entry = procedural.create(name, {**config, "seed": 3, "size": 100})[index]
    return wire.decode_struct(wire.encode_struct(plain({"dataset": name, "config": config, "entry": entry})))


@pytest.mark.parametrize("name", NAMES)
def test_the_own_answer_is_right_and_hostile_ones_are_not_and_never_a_failure(
    verifier: ReasoningGymVerifier, name: str
) -> None:
    for index in range(3):
        known = reference(name, index)
        before = copy.deepcopy(known)
        answer = known["entry"]["answer"]
        if isinstance(answer, str) and name not in ("boxnet", "rubiks_cube", "propositional_logic"):
            for response in (
                answer,
                f"<think>5</think><answer>{answer}</answer>",
                f"<answer>no</answer> <answer>{answer}</answer>",
            ):
                assert verifier.verify(Item("", response, known)).parts == {"correct": 1.0, "valid": 1.0}, response
        for response in HOSTILE:
            verdict = verifier.verify(Item("", response, known))
            assert verdict.parts["correct"] == float(verdict.reward >= 1)
            assert 0 <= verdict.reward <= 1
        assert known == before


def test_what_is_no_answer_is_not_valid(verifier: ReasoningGymVerifier) -> None:
    known = reference("chain_sum")
    for response in ("", "<think>5", "<answer>5", "x" * 100_000):
        assert verifier.verify(Item("", response, known)) == Verdict(0.0, {"correct": 0.0, "valid": 0.0})


def test_a_box_is_an_answer_too(verifier: ReasoningGymVerifier) -> None:
    known = reference("chain_sum", 0, min_terms=2, max_terms=2)
    answer = known["entry"]["answer"]
    assert verifier.verify(Item("", rf"So it is \boxed{{{answer}}}.", known)).reward == 1


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"dataset": None}, "has dataset = None"),
        ({"dataset": 3}, "has dataset = 3"),
        ({"config": 3}, "config = 3; expected the name of a data set, and a table"),
        ({"entry": None}, "has entry = None; expected a table with question, answer and metadata"),
        ({"entry": {"answer": "5"}}, "has entry = "),
        ({"dataset": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"config": {"min_terms": 9, "max_terms": 2}}, "dataset = 'chain_sum', config = .*; change config"),
        ({"config": {"terms": 9}}, "dataset = 'chain_sum', config = .*; change config"),
        ({"dataset": "composite"}, "'composite', config = .*: the task is refused: it is made of others"),
        ({"dataset": "sudoku"}, "cannot read the entry"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(
    verifier: ReasoningGymVerifier, known: dict[str, Any], text: str
) -> None:
    usable = {"dataset": "chain_sum", "entry": {"question": "", "answer": "5", "metadata": {}}}
    assert verifier.verify(Item("", "5", usable)).reward == 1
    with pytest.raises(InvalidInputError, match=text):
        verifier.verify(Item("", "5", {**usable, **known}))


@pytest.mark.parametrize("name", sorted(procedural.REFUSED))
def test_data_sets_that_evaluate_text_are_refused_by_name(verifier: ReasoningGymVerifier, name: str) -> None:
    known = {"dataset": name, "entry": {"question": "", "answer": "1", "metadata": {}}}
    with pytest.raises(InvalidInputError, match=f"'{name}', .*: the task is refused: it"):
        verifier.verify(Item("", "__import__('os').abort()", known))


@pytest.mark.parametrize("name", ["spiral_matrix", "simple_integration", "n_queens", "bitwise_arithmetic"])
def test_what_evaluates_text_nevertheless_is_stopped_and_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later version might."""
    monkeypatch.setattr(procedural, "REFUSED", {})
    _task.cache_clear()
    late = ReasoningGymVerifier(ReasoningGymVerifier.Settings())
    late.start()
    with pytest.raises(VerifierError, match=f"scorer of {name} evaluates text as Python"):
        late.verify(Item("", "[[1, 2], [3, 4]]", reference(name)))
    _task.cache_clear()


def test_the_guard_lets_imports_and_literals_through() -> None:
    guard = _Guard()
    sys.addaudithook(guard)
    with guard:
        assert ast.literal_eval("[1, 2]") == [1, 2]
        with pytest.raises(RuntimeError):
            eval("1 + 1")  # noqa: S307
    assert guard.stopped
    assert eval("1 + 1") == 2  # noqa: S307


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingDependencyError, match=r"routershift\[reasoning-gym\]"):
        ReasoningGymVerifier(ReasoningGymVerifier.Settings()).start()


# Modules that evaluate text, and not where answers are scored: read in reasoning-gym 0.1.25.
GENERATES_ONLY = {
    "reasoning_gym.arithmetic.basic_arithmetic",  # the expression that it has made
    "reasoning_gym.code.codeio",  # the programs that the package ships
    "reasoning_gym.logic.propositional_logic",  # a parser of its own
}


def test_every_task_whose_module_could_evaluate_text_is_refused_or_was_read() -> None:
    """Looks at what is installed, so that a later version cannot bring one in unseen."""
    procedural.check("chain_sum")
    from reasoning_gym.factory import DATASETS

    assert len(DATASETS) > 100
    suspicious = {"eval", "exec", "parse_expr", "sympify", "system", "Popen", "check_output"}
    found = {}
    for name, (kind, _) in DATASETS.items():
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
        if called & suspicious and kind.__module__ not in GENERATES_ONLY:
            found[name] = called & suspicious
    assert found.keys() - procedural.REFUSED.keys() == set(), found


async def test_it_runs_in_the_worker_processes_of_the_service() -> None:
    scorer = Scorer(make_verifiers({}), RewardSettings(processes=1))
    known = reference("chain_sum")
    items = [Item("", response, known) for response in (known["entry"]["answer"], *HOSTILE)]
    refused = Item("", "5", {"dataset": "n_queens", "entry": known["entry"]})
    try:
        scored = await scorer.score("reasoning_gym", [*items, refused])
    finally:
        await scorer.close()
    assert [s.outcome for s in scored] == [Outcome.SCORED] * len(items) + [Outcome.REFUSED]
    assert scored[0].verdict is not None
    assert scored[0].verdict.reward == 1
