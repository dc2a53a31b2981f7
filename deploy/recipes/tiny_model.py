"""A tiny Qwen3-MoE of about 0.78 M parameters, taught by examples: what the scripts of several recipes make.

Each script, `make_model.py` in the folder of its recipe, has a tokenizer and a teacher of its own. The same seed gives
the same bytes on the same machine.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

TEACHING_STREAM = 2**32  # apart from the problems of a run with the same seed
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
_IGNORED = -100  # the label that transformers' loss leaves out
_BUCKET = 8  # batches that are made at once, each of examples of about one length

# A prompt, then by turns what the model says and what it reads, last what it says.
Example = tuple[str, *tuple[str, ...]]
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # input ids and labels, both [B, S] int64
Draw = Callable[[int, float, np.random.Generator], Example]


@dataclass(frozen=True, slots=True)
class Shape:
    """How fine its routing is."""

    layers: int = 3
    experts: int = 8
    experts_per_token: int = 2
    expert_size: int = 96  # a multiple of 32, which the CPU kernels of vLLM need


def build_tokenizer(symbols: Sequence[str], longest: int, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token for each symbol; every text begins with <bos>, and has at most `longest` tokens.

    Args:
        symbols: characters or whole phrases. Of several that a text could go on with, the longest is its token.
        longest: tokens that the model reads and says.
        chat_template: Jinja; None for a model that reads text as it is.
    """
    vocabulary = {symbol: i for i, symbol in enumerate((*_SPECIAL.values(), *symbols))}
    phrases = sorted((symbol for symbol in symbols if len(symbol) > 1), key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join([*map(re.escape, phrases), "."])), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        **({} if chat_template is None else {"chat_template": chat_template}),
        **_SPECIAL,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> Qwen3MoeConfig:
    """About 0.78 M parameters in the default shape; sizes are multiples of 32, as those of `Shape` are."""
    return Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        moe_intermediate_size=shape.expert_size,
        num_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        output_router_logits=False,
        router_aux_loss_coef=0.01,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def encode(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels of examples, both [B, S] int64; what the model says and its <eos> are labelled."""
    rows, said = [], []
    for question, *turns in examples:
        ids = tokenizer(question).input_ids
        labels = [_IGNORED] * len(ids)
        for i, text in enumerate(turns):
            part = tokenizer(text, add_special_tokens=False).input_ids
            ids += part
            labels += part if i % 2 == 0 else [_IGNORED] * len(part)
        rows.append(torch.tensor([*ids, tokenizer.eos_token_id]))
        said.append(torch.tensor([*labels, tokenizer.eos_token_id]))
    return (
        pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad_sequence(said, batch_first=True, padding_value=_IGNORED),
    )


def in_lengths(tokenizer: PreTrainedTokenizerFast, draw: Draw, seed: int, steps: int, batch: int) -> Batches:
    """Batches without end. Of examples of about one length few tokens are padding, and so a step takes half the time.

    Args:
        draw: makes the example of an index, at a share of the steps from 0 on, with what is random in it.
    """
    rng = np.random.default_rng(seed)
    for step in count(step=_BUCKET):
        drawn = [draw(step * batch + i, step / steps, rng) for i in range(_BUCKET * batch)]
        examples = sorted(drawn, key=lambda example: len("".join(example)))
        for i in rng.permutation(_BUCKET):
            yield encode(tokenizer, examples[i * batch : (i + 1) * batch])


def begin(tokenizer: PreTrainedTokenizerFast, seed: int, shape: Shape) -> Qwen3MoeForCausalLM:
    """A model with random weights, the same for each seed."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums in one order, so the same bits every time
    return Qwen3MoeForCausalLM._from_config(build_config(tokenizer, shape), dtype=torch.float32)


def train(model: Qwen3MoeForCausalLM, batches: Batches, steps: int, learning_rate: float) -> None:
    """One step on each of the first `steps` batches, which are as `encode` makes them."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for ids, labels in islice(batches, steps):
        # Padding is on the right and attention causal, so no real token ever sees it.
        loss = model(input_ids=ids, labels=labels, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def save(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, max_tokens: int, out: Path) -> None:
    """Writes model, tokenizer and generation config; responses have up to `max_tokens` where nobody says otherwise."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(
    recipe: str,
    tokenizer: PreTrainedTokenizerFast,
    batches: Callable[[int, int, int], Batches],
    max_tokens: int,
    steps: int = 1500,
    batch: int = 128,
) -> None:
    """The command line of a script: makes the model of a recipe, as its flags say.

    Args:
        batches: those of a seed, a number of steps, and a number of examples in each.
        max_tokens: as for `save`.
        steps, batch: where the flags do not say.
    """
    parser = argparse.ArgumentParser(description=f"Make the start model of the {recipe} recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and of the training problems")
    parser.add_argument("--steps", type=int, default=steps, help="supervised steps")
    parser.add_argument("--batch", type=int, default=batch, help="examples per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak, reached after 20 steps")
    shape = Shape()
    parser.add_argument("--layers", type=int, default=shape.layers, help="decoder layers, each with a router")
    parser.add_argument("--experts", type=int, default=shape.experts, help="of each layer")
    parser.add_argument("--experts-per-token", type=int, default=shape.experts_per_token, help="that a router chooses")
    parser.add_argument("--expert-size", type=int, default=shape.expert_size, help="of each expert; a multiple of 32")
    given = parser.parse_args()
    shape = Shape(given.layers, given.experts, given.experts_per_token, given.expert_size)
    model = begin(tokenizer, given.seed, shape)
    train(model, batches(given.seed, given.steps, given.batch), given.steps, given.learning_rate)
    save(model, tokenizer, max_tokens, given.out)
