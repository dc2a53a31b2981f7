"""Settings: their order of strength, and errors that name the key, the value and the fix."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from services.cli.recipe import Recipe
from services.curriculum.settings import Settings as CurriculumTables
from services.generation.settings import GenerationSettings
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared.errors import InvalidInputError, NotFoundError, RouterShiftError
from shared.recipes import load
from shared.settings import RunSettings


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[run]\nmodel = "model"\nsteps = 5\n[generation]\nmax_num_seqs = 7\n[learner]\nanything = 1\n')
    return path


def test_flags_beat_environment_beats_recipe_beats_default(recipe: Path) -> None:
    environment = {"ROUTERSHIFT_RUN__STEPS": "6", "ROUTERSHIFT_RUN__SEED": "1", "PATH": "/bin"}
    settings = load(GenerationTables, recipe, environment, ["run.seed=2"])
    assert (settings.run.steps, settings.run.seed, settings.generation.max_num_seqs) == (6, 2, 7)
    assert settings.run.groups_per_step == 32


def test_groups_in_flight_fill_a_step_and_are_not_too_stale_from_the_start() -> None:
    def tickets(**settings: int) -> int:
        return RunSettings.model_validate({"model": "m", "groups_per_step": 8, **settings}).tickets

    assert tickets(max_staleness=2) == 24
    assert tickets(max_staleness=9, groups_in_flight=20) == 20
    for wrong in (7, 25):
        with pytest.raises(ValidationError, match=rf"groups_in_flight is {wrong}; .* = 8, .* = 24, "):
            tickets(max_staleness=2, groups_in_flight=wrong)


def test_a_cache_is_not_kept_where_new_prompts_would_get_it() -> None:
    with pytest.raises(ValidationError, match=r"update_policy is 'keep_cache', and vllm\.enable_prefix_caching true"):
        GenerationSettings.model_validate({"update_policy": "keep_cache"})
    assert GenerationSettings.model_validate({"update_policy": "keep_cache", "engine": "torch"})
    assert GenerationSettings.model_validate({"update_policy": "keep_cache", "vllm": {"enable_prefix_caching": False}})


def test_tables_in_tables_are_reached_from_everywhere(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("anything = 1\n", "lora.alpha = 2\nlora.rank = 1\n"))
    settings = load(LearnerTables, recipe, {"ROUTERSHIFT_LEARNER__LORA__RANK": "4"}, ["learner.lora.targets=experts"])
    assert (settings.learner.lora.alpha, settings.learner.lora.rank) == (2, 4)
    assert settings.learner.lora.targets == "experts"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("learner.gama_min=1", "did you mean 'learner.router_shift.gamma_min'?"),
        ("learner.checkpoint_every=1", "did you mean 'learner.checkpoints.every'?"),
        ("learner.transfer_host=x", "did you mean 'learner.transfer.host'?"),
        ("learner.learning_rate=1", "did you mean 'learner.optimizer.learning_rate'?"),
        ("learner.lora.learning_rate=1", "did you mean 'learner.optimizer.learning_rate'?"),
        ("learner.optimizer.learning_rat=1", "did you mean 'learner.optimizer.learning_rate'?"),
        ("learner.optimiser.beta1=1", "unknown setting 'learner.optimiser'; did you mean 'learner.optimizer'?"),
        ("learner.lora.rnk=1", "did you mean 'learner.lora.rank'?"),
        (
            "learner.router_shift=true",
            "is 'true': it is a table; set one of its keys, as 'learner.router_shift.enabled'",
        ),
        ("learner.optimizer.beta1=2", "setting 'learner.optimizer.beta1' is '2': input should be less than 1"),
        ("gamma_min.x=1", "did you mean 'learner.router_shift.gamma_min'?"),
        ("learner.optimizer.beta1.more=2", "setting 'learner.optimizer.beta1' input should be a valid number"),
    ],
)
def test_mistakes_in_tables_in_tables_name_what_was_meant(tmp_path: Path, flag: str, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load(LearnerTables, None, {}, ["run.model=m", flag])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_environment_is_named_at_any_depth() -> None:
    environment = {"ROUTERSHIFT_RUN__MODEL": "m", "ROUTERSHIFT_LEARNER__OPTIMIZER__BETA3": "0.9"}
    with pytest.raises(
        InvalidInputError, match=r"learner\.optimizer\.beta3'; did you mean 'learner\.optimizer\.beta[12]'"
    ):
        load(LearnerTables, None, environment)


def test_every_setting_has_a_description_and_every_table_says_what_it_is() -> None:
    tables: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    for prefix, table in tables:
        for name, field in table.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                assert annotation.__doc__, f"{prefix}{name}: no docstring"
                tables.append((f"{prefix}{name}.", annotation))
            else:
                assert field.description, f"{prefix}{name}: no description"


def test_a_recipes_model_lies_relative_to_it_and_a_flags_to_the_caller(recipe: Path) -> None:
    assert load(RewardTables, recipe, {}).run.model == recipe.parent / "model"
    assert load(RewardTables, recipe, {}, ["run.model=elsewhere"]).run.model == Path("elsewhere")


def test_redis_url_of_the_environment_wins_and_is_never_shown(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '[redis]\nurl = "redis://recipe"\n')
    settings = load(RewardTables, recipe, {"REDIS_URL": "redis://:secret@host"})
    assert settings.redis.url.get_secret_value() == "redis://:secret@host"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "error", "text"),
    [
        (["run.stepz=3"], InvalidInputError, "unknown setting 'run.stepz'; did you mean 'run.steps'?"),
        (["generatoin.port=1"], InvalidInputError, "unknown setting 'generatoin'; did you mean 'generation'?"),
        (["run.steps=many"], InvalidInputError, "setting 'run.steps' is 'many': input should be a valid integer"),
        (["run.steps=0"], InvalidInputError, "setting 'run.steps' is '0': input should be greater than or equal to 1"),
        (["run.id=No Spaces"], InvalidInputError, "setting 'run.id' is 'No Spaces'"),
        (["run.steps.more=3"], InvalidInputError, "--set run.steps.more: run.steps is a single value in the recipe"),
        (["steps=3"], InvalidInputError, "names no table; did you mean"),
    ],
)
def test_bad_settings_are_one_line_that_says_what_to_do(
    recipe: Path, flags: list[str], error: type[RouterShiftError], text: str
) -> None:
    with pytest.raises(error) as caught:
        load(GenerationTables, recipe, {}, flags)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_penalty_for_length_that_no_response_escapes_is_refused(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("anything = 1\n", "overlong_buffer_tokens = 9\n"))
    with pytest.raises(InvalidInputError, match="overlong_buffer_tokens is 9; it must be at most"):
        load(LearnerTables, recipe, {}, ["rollout.max_tokens=8"])


@pytest.mark.parametrize(
    ("flag", "full"), [("top_p=0.9", 1.0), ("top_k=50", 0), ("min_p=0.05", 0.0), ("min_tokens=4", 0)]
)
def test_rollouts_that_leave_out_tokens_are_refused_with_the_reason(recipe: Path, flag: str, full: float) -> None:
    name, _, value = flag.partition("=")
    load(GenerationTables, recipe, {}, [f"rollout.{name}={full}"])
    with pytest.raises(InvalidInputError) as caught:
        load(GenerationTables, recipe, {}, [f"rollout.{flag}"])
    for part in (f"rollout.{name}'", value, f"take {full} alone", "importance ratio", "evaluation.sampling"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "flag", ["n=1", "n=1025", "temperature=0", "temperature=0.009", "temperature=2.1", "max_tokens=0", "stop="]
)
def test_rollouts_that_generation_would_refuse_are_refused_at_the_start(recipe: Path, flag: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"rollout\.{flag.partition('=')[0]}"):
        load(GenerationTables, recipe, {}, [f"rollout.{flag}"])


def test_a_text_that_ends_a_rollout_may_hold_a_comma(recipe: Path) -> None:
    assert load(GenerationTables, recipe, {}, ["rollout.stop=a, b"]).rollout.stop == ("a, b",)
    recipe.write_text(recipe.read_text() + '\n[rollout]\nstop = ["END", "\\n\\n"]\n')
    assert load(GenerationTables, recipe, {}).rollout.stop == ("END", "\n\n")


def test_a_missing_model_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"setting 'run' field required|setting 'run.model' field required"):
        load(RewardTables, None, {})


def test_an_environment_variable_without_a_key_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="ROUTERSHIFT_STEPS names no key; expected ROUTERSHIFT_TABLE__KEY"):
        load(RewardTables, None, {"ROUTERSHIFT_STEPS": "3"})


def test_a_recipe_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        load(RewardTables, tmp_path / "none.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(InvalidInputError, match="is not TOML"):
        load(RewardTables, broken, {})


def test_files_that_a_recipe_names_are_relative_to_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[run]\nmodel = "m"\n[reward.verifiers.mine]\nfile = "mine.py"\n'
        '[reward.verifiers.taste]\nkind = "model"\nmodel = "/models/taste"\n[reward.verifiers.math]\ndecimals = 2\n'
    )
    settings = load(RewardTables, recipe, {}, ["reward.verifiers.other.file=here.py"])
    assert settings.run.model == tmp_path / "m"
    assert settings.reward.verifiers == {
        "mine": {"file": str(tmp_path / "mine.py")},
        "taste": {"kind": "model", "model": "/models/taste"},
        "math": {"decimals": 2},
        "other": {"file": "here.py"},
    }


SOURCES = """
[run]
model = "model"
[[data.train]]
source = "rows/*.jsonl"
columns = { prompt = "question", reference = "answer" }
verifier = "math"
chat_template = "chat.jinja"
[[data.train]]
source = "openai/gsm8k"
preset = "gsm8k"
verifier = { kind = "math", judging_seconds = 2.0 }
[[data.eval]]
source = "/far/test.csv.gz"
columns = { prompt = "question", reference = "answer" }
verifier = { kind = "math", judging_seconds = 2.0 }
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SOURCES)
    return path


def test_paths_in_arrays_of_tables_are_relative_to_the_recipe_and_names_stay(sources: Path) -> None:
    train = load(CurriculumTables, sources, {}).data.train
    assert [each.source for each in train] == [f"{sources.parent}/rows/*.jsonl", "openai/gsm8k"]
    assert [each.chat_template for each in train] == [sources.parent / "chat.jinja", True]
    assert load(CurriculumTables, sources, {}).data.eval[0].source == "/far/test.csv.gz"


def test_a_key_of_one_table_of_an_array_is_set_from_everywhere(sources: Path) -> None:
    environment = {"ROUTERSHIFT_DATA__TRAIN__1__WEIGHT": "2"}
    flags = ["data.train.0.weight=3", "data.train.0.columns.prompt=q", "data.eval.1.source=b.csv"]
    flags += ["data.eval.1.columns.prompt=q", "data.eval.1.verifier=exact", "data.train.0.chat_template=off"]
    data = load(CurriculumTables, sources, environment, flags).data
    assert [each.weight for each in data.train] == [3, 2]
    assert data.train[0].columns == {"prompt": "q", "reference": "answer"}
    assert data.train[0].chat_template is False
    assert [each.label for each in data.eval] == ["test", "b"]


def test_a_verifier_in_a_source_reaches_the_reward_service_once(sources: Path) -> None:
    table = {"kind": "math", "judging_seconds": 2.0}
    assert load(RewardTables, sources, {}).reward.verifiers == {"data-train-1": table}
    data = load(CurriculumTables, sources, {}).data
    assert [each.verifier for each in (*data.train, *data.eval)] == ["math", "data-train-1", "data-train-1"]
    assert load(GenerationTables, sources, {}).run.model == sources.parent / "model"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("data.train.0.sorce=x", "unknown setting 'data.train.0.sorce'; did you mean 'data.train.0.source'?"),
        ("data.eval.0.sampling.tempratur=1", "did you mean 'data.eval.0.sampling.temperature'?"),
        ("data.train.1.weight=-1", "setting 'data.train.1.weight' is '-1': input should be greater than 0"),
        ("data.train.x.weight=1", "data.train is an array of 2 tables; expected the number of one, counted from 0"),
        ("data.train.7.weight=1", "data.train is an array of 2 tables; expected the number of one, counted from 0"),
        ("data.train.0=x", "setting 'data.train.0' is 'x': it is a table; set one of its keys, as 'data.train.source'"),
        ("data.train=x", "setting 'data.train' is 'x':"),
        ("data.train.0.columns=x", "setting 'data.train.0.columns' is 'x': it is a table, as { name = \"value\" }"),
        ("data.train.0.source.x=1", "data.train.0.source is a single value in the recipe"),
        ("data.train.0.verifier.judging_seconds=1", "data.train.0.verifier is a single value in the recipe"),
        ("data.train.1.verifier.judging_seconds=1", ""),
        ("data.train.2.verifier.judging_seconds=1", "'data.train.2.verifier' is a table without kind or file"),
        ("data.train.1.preset=gsm9k", "preset is 'gsm9k'; did you mean 'gsm8k'?"),
        ("data.train.0.split=test", "split is for a data set by name"),
        ("data.train.0.weight=1", "some tables of train have a weight and some have none"),
        ("data.eval.1.source=test.json", "setting 'data.eval.1': columns.prompt and prompt are missing"),
        ("data.held_out=1", "did you mean 'data.held_out_share'?"),
        ("run.task=countdown", "run.task is 'countdown', and there is [[data.train]]; take one of both out"),
    ],
)
def test_mistakes_in_arrays_of_tables_name_the_table(sources: Path, flag: str, text: str) -> None:
    if not text:
        load(CurriculumTables, sources, {}, [flag])
        return
    with pytest.raises(InvalidInputError) as caught:
        load(CurriculumTables, sources, {}, [flag])
    assert text in str(caught.value)


def test_one_table_in_the_place_of_an_array_is_told_how_to_write_it(sources: Path) -> None:
    sources.write_text(SOURCES.replace("[[data.eval]]", "[data.eval]"))
    with pytest.raises(InvalidInputError, match=r"'data.eval' is one table; write \[\[data.eval\]\]"):
        load(CurriculumTables, sources, {})
