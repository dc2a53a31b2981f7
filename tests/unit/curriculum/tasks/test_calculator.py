"""The calculator task: problems of Countdown that are played."""

from services.curriculum.problems import TaskProblems
from services.curriculum.prompts import make_prompt
from services.curriculum.settings import Settings
from services.curriculum.tasks.calculator import Calculator
from services.curriculum.tasks.registry import make_task
from services.environments.registry import kinds
from services.reward.verifiers.registry import make_verifiers


def test_its_environment_and_its_verifier_need_no_table_of_a_recipe() -> None:
    assert Calculator.environment in kinds()
    assert Calculator.verifier in make_verifiers({})


def test_its_prompts_name_the_environment() -> None:
    settings = Settings.model_validate({"run": {"id": "one", "model": "m", "task": "calculator"}})
    problems = TaskProblems(make_task("calculator", 3), settings)
    prompt = make_prompt(5, problems.train(5), settings.run, settings.rollout)
    assert (prompt.environment, prompt.verifier, prompt.problem_id) == ("calculator", "countdown", prompt.text)
    assert prompt.text == Calculator(3).train(5).prompt
    (held_out,) = problems.held_out()
    assert held_out.name == "calculator"
    assert {problem.environment for problem in held_out.problems} == {"calculator"}
