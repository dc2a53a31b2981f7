"""Makes the seed model of the Countdown recipe: a tiny Qwen3-MoE, briefly taught the format and some arithmetic.

    python deploy/recipes/countdown/make_model.py --seed 0 --out DIR

Its teacher is sloppy: one answer in three is a random expression over the numbers, which mostly misses the target.
So the model is right about one time in four: often enough for reinforcement learning to find rewards, and with
much to learn from them. The same seed gives the same bytes on the same machine.
"""

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from services.curriculum.tasks.countdown import Countdown, Problem, expressions

MAX_RESPONSE_TOKENS = 16
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
SYMBOLS = "0123456789+-*()=,: "
_GUESSED_SHARE = 0.35
TEACHING_STREAM = 2**32  # apart from the problems of a run with the same seed
_IGNORED = -100  # the label that transformers' loss leaves out


def build_tokenizer(symbols: str = SYMBOLS, longest: int = 64) -> PreTrainedTokenizerFast:
    """One token per character; every text begins with <bos>, and has at most `longest` tokens."""
    vocabulary = {symbol: i for i, symbol in enumerate((*_SPECIAL.values(), *symbols))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=longest, **_SPECIAL
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeConfig:
    """About 0.78 M parameters; sizes are multiples of 32, which the CPU kernels of vLLM need."""
    return Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        moe_intermediate_size=96,
        num_experts=8,
        num_experts_per_tok=2,
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


def teach(problem: Problem, rng: np.random.Generator) -> str:
    """An answer to learn from: the simplest solution, or else any expression over the numbers."""
    if rng.random() >= _GUESSED_SHARE:
        return problem.solutions[0]
    texts = [text for text, _ in expressions(problem.numbers)]
    return texts[rng.integers(len(texts))]


def encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, *tuple[str, ...]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels of examples, both [B, S] int64; what the model says and its <eos> are labelled.

    Args:
        examples: each a prompt and then by turns what the model says and what it reads, last what it says.
    """
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


def begin(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3MoeForCausalLM:
    """A model with random weights, the same for each seed."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums in one order, so the same bits every time
    return Qwen3MoeForCausalLM._from_config(build_config(tokenizer), dtype=torch.float32)


def train(
    model: Qwen3MoeForCausalLM, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], steps: int, learning_rate: float
) -> None:
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


def _batches(tokenizer: PreTrainedTokenizerFast, seed: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    task, rng = Countdown(TEACHING_STREAM + seed), np.random.default_rng(seed)
    for start in count(step=batch):
        problems = [task.train(start + i) for i in range(batch)]
        yield encode(tokenizer, [(problem.prompt, teach(problem, rng)) for problem in problems])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the seed model of the Countdown recipe.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and of the training problems")
    parser.add_argument("--steps", type=int, default=600, help="supervised steps")
    parser.add_argument("--batch", type=int, default=128, help="problems per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak, reached after 20 steps")
    arguments = parser.parse_args()
    tokenizer = build_tokenizer()
    model = begin(tokenizer, arguments.seed)
    batches = _batches(tokenizer, arguments.seed, arguments.batch)
    train(model, batches, arguments.steps, arguments.learning_rate)
    save(model, tokenizer, MAX_RESPONSE_TOKENS, arguments.out)


if __name__ == "__main__":
    main()
