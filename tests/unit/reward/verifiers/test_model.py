"""The model verifier with tiny random classifiers: its numbers are those of the model alone, text by text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config, Qwen3ForSequenceClassification

from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item
from services.reward.verifiers.model import ModelSettings, ModelVerifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import NotFoundError, PreconditionError
from tests.support.models import PAD, VOCABULARY, build_tokenizer, save_model

ITEMS = [Item("1+2=", response, {}) for response in ("3", "12345", "4+4-5", "0")]


def save_classifier(folder: Path, labels: int = 1, template: bool = True) -> Path:
    torch.manual_seed(labels)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        pad_token_id=PAD,
        initializer_range=0.3,
        num_labels=labels,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer = build_tokenizer()
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '!' if m.role == 'user' else '?' }}{{ m.content }}{% endfor %}"
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


def verifier(folder: Path, **settings: Any) -> ModelVerifier:
    return ModelVerifier(ModelSettings(model=folder, **settings))


def rewards(folder: Path, **settings: Any) -> list[float]:
    return [verdict.reward for verdict in verifier(folder, **settings).verify_batch(ITEMS)]


def logits(folder: Path, texts: list[str]) -> torch.Tensor:
    """[texts, labels], one text at a time and so without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = build_tokenizer()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in texts])


def test_rewards_are_the_models_in_order_whatever_the_batch(folder: Path) -> None:
    expected = logits(folder, [f"!{item.prompt}?{item.response}" for item in ITEMS])[:, 0].tolist()
    assert len({round(value, 3) for value in expected}) == len(ITEMS)
    for rows in (1, 3, 8):
        assert rewards(folder, rows=rows) == pytest.approx(expected, abs=1e-5)


def test_without_a_template_the_response_follows_the_prompt(folder: Path) -> None:
    expected = logits(folder, [item.prompt + item.response for item in ITEMS])[:, 0].tolist()
    assert rewards(folder, chat_template=False) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("truncation", "seen"), [("start", slice(-5, None)), ("end", slice(5))])
def test_longer_texts_are_cut_where_the_settings_say(folder: Path, truncation: str, seen: slice) -> None:
    expected = logits(folder, [f"!{item.prompt}?{item.response}"[seen] for item in ITEMS])[:, 0].tolist()
    assert rewards(folder, truncation=truncation, max_tokens=5) == pytest.approx(expected, abs=1e-5)


def test_longer_texts_are_not_judged_where_the_settings_say_so(folder: Path) -> None:
    judged = verifier(folder, truncation="never", max_tokens=8, overlong_reward=-9, threshold=-100)
    verdicts = judged.verify_batch(ITEMS)
    assert [verdict.reward == -9 for verdict in verdicts] == [False, True, True, False]
    assert [verdict.parts["valid"] for verdict in verdicts] == [1, 0, 0, 1]
    assert [verdict.parts["correct"] for verdict in verdicts] == [1, 0, 0, 1]
    assert [verdict.parts["tokens"] for verdict in verdicts] == [7, 0, 0, 7]


def test_a_label_is_rewarded_with_its_probability(tmp_path: Path) -> None:
    save_classifier(tmp_path, labels=3)
    expected = logits(tmp_path, [f"!{item.prompt}?{item.response}" for item in ITEMS]).softmax(-1)[:, 1].tolist()
    verdicts = verifier(tmp_path, label=1, threshold=sorted(expected)[2]).verify_batch(ITEMS)
    assert [verdict.reward for verdict in verdicts] == pytest.approx(expected, abs=1e-5)
    assert sum(verdict.parts["correct"] for verdict in verdicts) == 2


@pytest.mark.parametrize(
    ("labels", "settings", "text"),
    [
        (1, {"label": 0}, "label is 0, and the model"),
        (3, {}, "label is None, and the model"),
        (3, {"label": 3}, "set label below 3"),
    ],
)
def test_labels_must_fit_the_model(tmp_path: Path, labels: int, settings: dict[str, Any], text: str) -> None:
    save_classifier(tmp_path, labels=labels)
    with pytest.raises(PreconditionError, match=text):
        verifier(tmp_path, **settings).start()


def test_folders_that_hold_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no config\.json there"):
        verifier(tmp_path)
    save_model(tmp_path / "policy", "qwen3_dense")
    with pytest.raises(PreconditionError, match=r"no trained classifier: score\.weight missing"):
        verifier(tmp_path / "policy").start()
    save_classifier(tmp_path / "plain", template=False)
    with pytest.raises(PreconditionError, match="no chat template"):
        verifier(tmp_path / "plain").start()
    (save_classifier(tmp_path / "bare") / "model.safetensors").unlink()
    with pytest.raises(PreconditionError, match="cannot be loaded"):
        verifier(tmp_path / "bare").start()


async def test_it_judges_in_a_worker_process(folder: Path) -> None:
    tables = {"taste": {"kind": "model", "model": str(folder)}}
    scorer = Scorer(make_verifiers(tables), RewardSettings(processes=1, timeout_seconds=60))
    try:
        scored = await scorer.score("taste", ITEMS)
    finally:
        await scorer.close()
    assert [s.verdict.reward for s in scored if s.verdict] == pytest.approx(rewards(folder), abs=1e-5)
