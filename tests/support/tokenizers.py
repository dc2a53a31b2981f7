"""Tokenizers of the kinds that models have, trained where a test needs them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ["</answer>", "你好", "😀😀", "a b", " b", "ab", "\n\n", "é", "好 m", "the cat"]
SPECIAL = ["<unk>", "<eos>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama-3, Qwen and DeepSeek: tokens are bytes of UTF-8, and merges that may split characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama-2 and Mixtral: spaces belong to words, unknown characters are bytes, the first space goes."""
    pieces = ["▁", "a", "▁a", "b", "▁b", "ab", "</", "answer", ">", "\n", "▁the", "▁cat", "m"]
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


def spelt(name: str, word: str) -> list[int]:
    tokenizer = TOKENIZERS[name]
    if name == "byte-level":
        return list(tokenizer.encode(word).ids)
    whole = (tokenizer.token_to_id(character if character != " " else "▁") for character in word)
    as_bytes = ([tokenizer.token_to_id(f"<0x{b:02X}>") for b in character.encode()] for character in word)
    ids = (i for one, several in zip(whole, as_bytes, strict=True) for i in (several if one is None else [one]))
    return [i for i in ids if i is not None]
