"""The Countdown task: reachable problems, right solutions, and a split that holds for every seed."""

import ast
from collections import Counter
from itertools import combinations_with_replacement, product

import pytest

from services.curriculum.tasks.countdown import Countdown, Problem
from shared.errors import InvalidInputError

EVERY_HELD_OUT = 1353  # of numbers up to 20 and targets up to 99


def evaluate(text: str) -> tuple[int, Counter[int]]:
    """The value of an expression and the numbers in it, by Python's own parser."""
    used: Counter[int] = Counter()

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                used[number] += 1
                return number
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return value(left) - value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
        raise AssertionError(f"{text} has a {ast.dump(node)}")

    return value(ast.parse(text, mode="eval").body), used


def key(problem: Problem) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(problem.numbers)), problem.target


def test_every_solution_is_right_and_uses_each_number_once() -> None:
    task = Countdown(0)
    for problem in (task.train(i) for i in range(300)):
        assert problem.solutions
        for solution in problem.solutions:
            assert evaluate(solution) == (problem.target, Counter(problem.numbers)), (problem, solution)


@pytest.mark.parametrize("numbers", [(2, 3, 7), (5, 5, 5), (1, 4, 6)])
def test_a_target_has_solutions_just_where_brute_force_finds_one(numbers: tuple[int, ...]) -> None:
    a, b, c = numbers
    reachable = set()
    for (x, y, z), f, g in product([(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)], "+-*", "+-*"):
        for text in (f"({x}{f}{y}){g}{z}", f"{x}{f}({y}{g}{z})"):
            reachable.add(evaluate(text)[0])
    solved = {target for target in range(-400, 400) if Problem(numbers, target).solutions}
    assert solved == reachable


def test_the_simplest_solution_comes_first() -> None:
    assert Problem((4, 2, 3), 10).solutions[0] == "2*3+4"
    assert Problem((2, 3, 4), 20).solutions[0] == "(2+3)*4"


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_training_and_held_out_problems_never_overlap_in_any_order_of_their_numbers(seed: int) -> None:
    held_out = {key(problem) for problem in Countdown(99).held_out(EVERY_HELD_OUT)}
    trained = {key(Countdown(seed).train(i)) for i in range(4000)}
    assert len(trained) > 2000
    assert not trained & held_out


def test_held_out_problems_are_distinct_reachable_and_the_same_for_every_seed() -> None:
    problems = Countdown(0).held_out(600)
    assert len({key(problem) for problem in problems}) == 600
    assert all(problem.solutions and 1 <= problem.target <= 99 for problem in problems)
    assert Countdown(1).held_out(600) == problems
    assert Countdown(0).held_out(100) == problems[:100]


def test_held_out_problems_look_like_training_problems() -> None:
    """Their numbers come in any order too, or the evaluation would be of another task."""
    ascending = sum(tuple(sorted(p.numbers)) == p.numbers for p in Countdown(0).held_out(600)) / 600
    assert ascending < 0.35


def test_asking_for_more_held_out_problems_than_there_are_is_an_error() -> None:
    every = [
        Problem(numbers, target)
        for numbers in combinations_with_replacement(range(1, 21), 3)
        for target in range(1, 100)
    ]
    reachable = sum(bool(p.solutions) for p in every if p.is_held_out)
    assert reachable == EVERY_HELD_OUT
    with pytest.raises(InvalidInputError, match=f"is {EVERY_HELD_OUT + 1}; there are {EVERY_HELD_OUT}"):
        Countdown(0).held_out(EVERY_HELD_OUT + 1)


def test_training_problems_depend_on_seed_and_index_only() -> None:
    forwards, backwards = Countdown(3), Countdown(3)
    expected = [forwards.train(i) for i in range(50)]
    assert [backwards.train(i) for i in reversed(range(50))] == expected[::-1]
    assert [Countdown(4).train(i) for i in range(50)] != expected


def test_what_the_policy_and_the_verifier_are_given() -> None:
    problem = Problem((12, 3, 7), 43)
    assert problem.prompt == "12,3,7:43="
    assert problem.reference == {"numbers": [12, 3, 7], "target": 43}
