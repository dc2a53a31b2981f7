"""A reward model: a Hugging Face sequence classifier that gives each response a number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from services.reward.verifiers.base import BatchVerifier, Item, Verdict, VerifierSettings
from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError, PreconditionError
from shared.models.loading import load_model, load_tokenizer_files


class ModelSettings(VerifierSettings):
    model: Path = Field(description="folder with a Hugging Face sequence classifier in safetensors, and its tokenizer")
    max_tokens: int = Field(2048, ge=1, description="length, prompt and response together, that the model is given")
    truncation: Literal["start", "end", "never"] = Field(
        "start", description="what goes from a longer text; 'never': it is not judged and gets `overlong_reward`"
    )
    overlong_reward: float = Field(
        0.0, allow_inf_nan=False, description="reward of a text that is too long, with truncation 'never'"
    )
    chat_template: bool = Field(
        True, description="prompt and response as a user's and an assistant's turn; else one after the other"
    )
    label: int | None = Field(
        None, ge=0, description="label whose probability is the reward; default: the one logit of a model with one"
    )
    threshold: float = Field(0.0, description="reward from which a response counts as correct")
    rows: int = Field(8, ge=1, description="texts that are computed at once")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the model is")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of its weights")


class ModelVerifier(BatchVerifier):
    """Reference: not read. The reward is the model's one logit, or the probability of `label`.

    The model comes from a local folder, in safetensors; nothing is fetched and no code from the folder is run.
    Parts: `correct` (reward >= threshold), `valid` (was not too long), `tokens` that the model saw.
    """

    name: ClassVar[str] = "model"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a sequence-classification reward model"
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": "1 where the reward reaches the setting threshold, else 0",
        "valid": "1 where the conversation was not too long for the model, else 0",
        "tokens": "tokens that the model saw",
    }
    Settings: ClassVar[type[VerifierSettings]] = ModelSettings
    settings: ModelSettings

    def __init__(self, settings: VerifierSettings) -> None:
        super().__init__(settings)
        if not (self.settings.model / "config.json").is_file():
            raise NotFoundError(
                f"model is {self.settings.model}; no config.json there: expected a folder with a sequence classifier"
            )

    def start(self) -> None:
        """Loads the model.

        Raises:
            MissingDependencyError: torch or transformers is not installed.
            PreconditionError: the folder holds no classifier, or one that does not fit the settings.
        """
        _ = self._loaded

    def verify_batch(self, items: Sequence[Item]) -> list[Verdict]:
        tokens = [self._tokens(item) for item in items]
        rewards = [self.settings.overlong_reward] * len(items)
        judged = [i for i, ids in enumerate(tokens) if len(ids) <= self.settings.max_tokens]
        for rows in self._by_length(judged, tokens):
            for i, reward in zip(rows, self._rewards([tokens[i] for i in rows]), strict=True):
                rewards[i] = reward
        return [
            Verdict(
                reward,
                {
                    "correct": float(valid and reward >= self.settings.threshold),
                    "valid": float(valid),
                    "tokens": float(len(ids) if valid else 0),
                },
            )
            for reward, ids, valid in zip(
                rewards, tokens, (len(ids) <= self.settings.max_tokens for ids in tokens), strict=True
            )
        ]

    def _by_length(self, indices: list[int], tokens: list[list[int]]) -> Iterator[list[int]]:
        """Texts of like length together, so that little is padding."""
        ordered = sorted(indices, key=lambda i: len(tokens[i]))
        for start in range(0, len(ordered), self.settings.rows):
            yield ordered[start : start + self.settings.rows]

    def _tokens(self, item: Item) -> list[int]:
        tokenizer, _ = self._loaded
        response = self.text(item)
        if self.settings.chat_template:
            turns = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": response}]
            text, special = tokenizer.apply_chat_template(turns, tokenize=False), False
        else:
            text, special = item.prompt + response, True
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        if not ids:
            raise InvalidInputError("prompt and response are empty; the model needs at least one token")
        most = self.settings.max_tokens
        if self.settings.truncation == "never":
            return ids
        return ids[-most:] if self.settings.truncation == "start" else ids[:most]

    def _rewards(self, rows: list[list[int]]) -> list[float]:
        import torch

        tokenizer, model = self._loaded
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.settings.device)
        with torch.inference_mode():
            logits = model(**batch).logits.float()
        label = self.settings.label
        values = logits[:, 0] if label is None else logits.softmax(-1)[:, label]
        rewards: list[float] = values.tolist()
        if not all(map(math.isfinite, rewards)):
            raise ArithmeticError(f"the model in {self.settings.model} gives rewards that are not finite")
        return rewards

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        folder, settings = self.settings.model, self.settings
        try:
            import torch
            from transformers import AutoModelForSequenceClassification
        except ImportError:
            raise MissingDependencyError("verifier model needs torch: pip install 'routershift[learner]'") from None
        try:
            tokenizer = load_tokenizer_files(folder)
            model, report = load_model(
                AutoModelForSequenceClassification,
                folder,
                dtype=getattr(torch, settings.dtype),
                output_loading_info=True,
            )
        except PreconditionError:
            raise
        except (OSError, ValueError) as error:
            raise PreconditionError(f"model folder {folder} cannot be loaded: {error}") from None
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise PreconditionError(f"model folder {folder} holds no trained classifier: {missing} missing")
        labels = model.config.num_labels
        if (settings.label is None) != (labels == 1) or (settings.label or 0) >= labels:
            raise PreconditionError(
                f"label is {settings.label}, and the model in {folder} has {labels}; set label below {labels}, "
                "or leave it out for a model with one"
            )
        if tokenizer.pad_token_id is None:
            raise PreconditionError(f"the tokenizer in {folder} has no pad_token; set one in tokenizer_config.json")
        if settings.chat_template and not tokenizer.chat_template:
            raise PreconditionError(f"the tokenizer in {folder} has no chat template; set chat_template = false")
        model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model.to(settings.device).eval()
