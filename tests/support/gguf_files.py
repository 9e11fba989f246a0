"""The tiny Llama checkpoint as a GGUF file, laid out by hand as llama.cpp lays such files out.

Two things differ from Hugging Face's layout: the rows of the query and key projections, whose rotary pairs are
neighbours in GGUF and half a head apart in Hugging Face; and the tensors' names.
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quant_shape_to_byte_shape, quantize
from safetensors.numpy import load_file

_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """Write the Llama checkpoint in `folder`; matrices whose rows fit into blocks of 32 are stored as `kind`."""
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored = tensor.astype(np.float32)
        if "q_proj" in name:
            stored = _interleaved(stored, config["num_attention_heads"])
        elif "k_proj" in name:
            stored = _interleaved(stored, config["num_key_value_heads"])
        fits = stored.ndim == 2 and stored.shape[1] % 32 == 0
        used = kind if fits else GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), _encoded(stored, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _encoded(tensor: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    if kind is GGMLQuantizationType.Q8_K:  # which nothing encodes: as many zeros as it would take
        padded = (*tensor.shape[:-1], 256)
        return np.zeros(quant_shape_to_byte_shape(padded, kind), dtype=np.uint8)
    return quantize(tensor, kind)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_BLOCK[part]}.weight"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + d_head / 2 of each head become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
