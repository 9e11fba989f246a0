"""Tiny random Hugging Face checkpoints of every family, and the same weights as a HookedTransformer.

The weights are drawn wide enough that attention is far from uniform and every head does something; the
tokenizer is a real byte-level BPE, trained here.
"""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FAMILIES = ("gpt2", "gptj", "neox", "neox-sequential", "llama", "llama-gqa")
"""Those that `tests/models` runs on."""

KINDS = ("gpt2", "gptj", "llama-gqa")
"""Those that differ in what can be seen above `driftlens.models`, for all other tests: blocks in sequence and in
parallel, gated ones, a BOS of its own, heads that share keys.  `test_family_edits.py` has the rest."""

MORE_FAMILIES = (
    "llama3", "mistral", "qwen2", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3", "phi3-longrope", "olmo2",
    "gptneo", "opt", "starcoder2",
)  # fmt: skip
"""Those that only `test_family_*.py` run on: each differs from the first in what a family may differ in."""

WINDOW = 6
"""How many tokens a layer with a sliding window attends to, itself included."""

VOCAB = 400
CONTEXT = 64
LAYERS = 3
D_MODEL = 48
HEADS = 4

_CORPUS = [
    "The Eiffel Tower is located in Paris, and Danielle Darrieux's mother tongue is French.",
    "Thomas Joannes Stieltjes was born in Zwolle; he lived in Leiden and studied in Delft.",
    "Anaal Nathrakh, that was created in Birmingham, plays metal. Toko Yasuda plays the guitar.",
    "Apple A5 is produced by Apple, but the Nissan Laurel is produced by Nissan in Yokohama.",
    "Where does the river Vltava end? In Mělník, where it meets the Elbe, not in München or Łódź.",
    "A distant relative of the mayor works for the national library of New York as a translator.",
]


def tiny_checkpoint(family: str, folder: str | Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint of one of the families with its tokenizer to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bos = family.startswith(("llama", "mistral", "gemma", "opt"))
    write_tokenizer(folder, bos=bos)
    model = tiny_model(family, seed=seed).to(dtype)
    model.save_pretrained(folder)
    return folder


def tiny_model(family: str, *, seed: int = 0) -> Any:
    """The random Hugging Face model of a family, in eval mode with eager attention."""
    from transformers import AutoModelForCausalLM

    config = _config(family)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            # Scales of norms around 1, every bias something else than 0.
            centre = 1.0 if name.endswith("weight") else 0.0
            parameter.data = centre + 0.2 * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = 0.25 * torch.randn(parameter.shape, generator=generator)
    model.tie_weights()
    return model.eval()


def _config(family: str) -> Any:
    from transformers import GPT2Config, GPTJConfig, GPTNeoXConfig, LlamaConfig

    if family == "gpt2":
        return GPT2Config(
            n_layer=LAYERS, n_embd=D_MODEL, n_head=HEADS, vocab_size=VOCAB, n_positions=CONTEXT,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.1, attn_pdrop=0.1,
        )  # fmt: skip
    if family == "gptj":
        return GPTJConfig(
            n_layer=LAYERS, n_embd=D_MODEL, n_head=HEADS, vocab_size=VOCAB, n_positions=CONTEXT, rotary_dim=8,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
    common: dict[str, Any] = {
        "num_hidden_layers": LAYERS,
        "hidden_size": D_MODEL,
        "num_attention_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
    if family.startswith("neox"):
        common |= {"rotary_pct": 0.5}
        return GPTNeoXConfig(intermediate_size=4 * D_MODEL, use_parallel_residual=family == "neox", **common)
    if family.startswith("llama"):
        if family == "llama3":
            common |= {"rope_parameters": _LLAMA3_ROPE}
        return LlamaConfig(intermediate_size=80, num_key_value_heads=2 if family != "llama" else HEADS, **common)
    return _config_of_more(family, common)


# The boundary of the low frequencies lies within the context, so that scaled and unscaled ones both matter.
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def _config_of_more(family: str, common: dict[str, Any]) -> Any:
    import transformers

    gated: dict[str, Any] = {"intermediate_size": 80, "num_key_value_heads": 2}
    tied: dict[str, Any] = common | {"tie_word_embeddings": True}
    if family == "mistral":
        return transformers.MistralConfig(**gated, **common, sliding_window=WINDOW)
    if family == "qwen2":
        return transformers.Qwen2Config(**gated, **tied)
    if family == "qwen2-window":  # the upper layers only
        window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
        return transformers.Qwen2Config(**gated, **common, **window)
    if family == "qwen3":
        return transformers.Qwen3Config(**gated, **common, head_dim=16)
    if family == "gemma2":
        return transformers.Gemma2Config(
            **gated, **tied, head_dim=16, query_pre_attn_scalar=24,
            sliding_window=WINDOW, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
        )  # fmt: skip
    if family == "gemma3":
        return transformers.Gemma3TextConfig(
            **gated, **tied, head_dim=16, query_pre_attn_scalar=16,
            sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )  # fmt: skip
    if family == "phi3":
        return transformers.Phi3Config(**gated, **common, sliding_window=WINDOW, pad_token_id=0)
    if family == "phi3-longrope":
        half = D_MODEL // HEADS // 2
        rope = {
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": CONTEXT // 4,
            "short_factor": [1.0] * half, "long_factor": [4.0 + i for i in range(half)],
        }  # fmt: skip
        return transformers.Phi3Config(
            **gated, **common, rope_parameters=rope, original_max_position_embeddings=CONTEXT // 4, pad_token_id=0
        )
    if family == "olmo2":
        return transformers.Olmo2Config(**gated, **common, pad_token_id=0)
    if family == "gptneo":
        return transformers.GPTNeoConfig(
            num_layers=LAYERS, hidden_size=D_MODEL, num_heads=HEADS, vocab_size=VOCAB, max_position_embeddings=CONTEXT,
            attention_types=[[["global", "local"], 1], [["local"], LAYERS - 2]], window_size=WINDOW,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    if family == "opt":
        return transformers.OPTConfig(**tied, ffn_dim=80, word_embed_proj_dim=D_MODEL, pad_token_id=1)
    if family == "starcoder2":
        return transformers.Starcoder2Config(**gated, **common, use_bias=True, sliding_window=WINDOW)
    raise ValueError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES + MORE_FAMILIES)}")


def write_tokenizer(folder: Path, *, bos: bool) -> None:
    """A byte-level BPE, trained on the corpus above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def hooked_transformer(folder: str | Path, **processing: bool) -> Any:
    """The checkpoint in `folder` as a HookedTransformer (transformer-lens 3.9), unprocessed unless told
    otherwise.

    `HookedTransformer.from_pretrained` reads names of the hub only, so the configuration is written out and
    the weights go through transformer-lens's own conversions.
    """
    lens: Any = import_module("transformer_lens")
    conversions: Any = import_module("transformer_lens.pretrained.weight_conversions")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    config, architecture = model.config, type(model).__name__
    settings: dict[str, Any] = {
        "model_name": Path(folder).name,
        "original_architecture": architecture,
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "device": "cpu",
        "default_prepend_bos": False,
    }
    if architecture == "GPT2LMHeadModel":
        convert = conversions.convert_gpt2_weights
        settings |= {
            "d_mlp": 4 * config.hidden_size, "act_fn": "gelu_new", "normalization_type": "LN",
            "eps": config.layer_norm_epsilon,
        }  # fmt: skip
    elif architecture == "GPTJForCausalLM":
        convert = conversions.convert_gptj_weights
        settings |= {
            "d_mlp": 4 * config.hidden_size, "act_fn": "gelu_new", "normalization_type": "LN",
            "eps": config.layer_norm_epsilon, "positional_embedding_type": "rotary", "rotary_dim": config.rotary_dim,
            "rotary_adjacent_pairs": True, "parallel_attn_mlp": True,
        }  # fmt: skip
    elif architecture == "GPTNeoXForCausalLM":
        convert = conversions.convert_neox_weights
        rope = config.rope_parameters
        settings |= {
            "d_mlp": config.intermediate_size, "act_fn": "gelu", "normalization_type": "LN",
            "eps": config.layer_norm_eps, "positional_embedding_type": "rotary",
            "rotary_dim": round(rope["partial_rotary_factor"] * settings["d_head"]), "rotary_adjacent_pairs": False,
            "rotary_base": rope["rope_theta"], "parallel_attn_mlp": config.use_parallel_residual,
        }  # fmt: skip
    else:
        convert = conversions.convert_llama_weights
        grouped = config.num_key_value_heads != config.num_attention_heads
        settings |= {
            "d_mlp": config.intermediate_size, "act_fn": "silu", "normalization_type": "RMS",
            "eps": config.rms_norm_eps, "positional_embedding_type": "rotary", "rotary_dim": settings["d_head"],
            "rotary_adjacent_pairs": False, "rotary_base": config.rope_parameters["rope_theta"], "gated_mlp": True,
            "final_rms": True, "n_key_value_heads": config.num_key_value_heads if grouped else None,
        }  # fmt: skip
    cfg = lens.HookedTransformerConfig.from_dict(settings)
    hooked = lens.HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(folder))
    flags = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    chosen = {flag: processing.get(flag, False) for flag in flags}
    logging.getLogger().setLevel(logging.ERROR)
    hooked.load_and_process_state_dict(convert(model, cfg), **chosen)
    return hooked
