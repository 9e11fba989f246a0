"""Which families there are, what is refused in one line, a family of the user's own, and what the self-check finds."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models import Batch, Family, LensModel, load_model, register_family
from driftlens.models.families import FAMILIES, longest_row, sliding_windows
from tests.support.checkpoints import CONTEXT, MORE_FAMILIES, WINDOW, tiny_checkpoint, tiny_model, write_tokenizer
from tests.support.checkpoints import FAMILIES as TINY_FAMILIES
from tests.support.places import ROOT
from tests.support.plain import PlainModel
from tests.support.tiny import BRIDGE, load_tiny

pytestmark = pytest.mark.skipif(not BRIDGE, reason="load_model needs transformer-lens 4.3")


def refused(folder: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(DriftlensError) as caught:
        load_model(folder, device="cpu", **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def changed(folder: Path, **values: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.fixture
def copied(checkpoints: Any, tmp_path: Path) -> Any:
    return lambda family: Path(shutil.copytree(checkpoints(family), tmp_path / family))


# --- the table ---


def test_every_family_has_a_checkpoint_in_the_tests():
    tested = {type(tiny_model(family)).__name__ for family in ("gpt2", "gptj", "neox", "llama", *MORE_FAMILIES)}
    assert tested == set(FAMILIES)


def test_the_documentation_has_a_row_for_every_family():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    table = page.split("## A real Gemma 3")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == [*TINY_FAMILIES, *MORE_FAMILIES]


def test_windows_by_layer(checkpoints: Any):
    windows = {family: load_tiny(checkpoints(family))._backend.windows for family in ("mistral", "gemma2", "gptneo")}
    assert windows["mistral"] == (WINDOW,) * 3
    assert windows["gemma2"] == (WINDOW, None, WINDOW)
    assert windows["gptneo"] == (None, WINDOW, WINDOW)


def test_a_window_counts_positions_also_between_branches(checkpoints: Any):
    """A branch stands where its trunk ends, however many columns of other branches lie between."""
    model = load_tiny(checkpoints("mistral"))
    trunk, ends = [5, 6, 7, 8], [[9, 10, 11, 12], [13, 14, 15]]
    tokens = torch.tensor([trunk + ends[0] + ends[1]])
    until = torch.tensor([[11] * 4 + [8] * 4 + [11] * 3])
    seen: list[Tensor] = []
    hook = (model.hook_name("pattern", 0), lambda pattern, hook: seen.append(pattern))
    model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), until), hooks=[hook])
    last = seen[0][0, :, -1]  # at position 6, so it sees positions 1 to 6
    assert [bool(value) for value in (last.abs().amax(0) > 0)] == [False] + [True] * 3 + [False] * 4 + [True] * 3


# --- rotary embeddings that change with the longest row of a batch ---


def test_longrope_is_run_up_to_its_boundary_only(checkpoints: Any):
    model = load_tiny(checkpoints("phi3-longrope"))
    assert model.n_ctx == CONTEXT // 4
    plain = PlainModel(checkpoints("phi3-longrope"))
    tokens = torch.randint(2, model.d_vocab, (1, model.n_ctx), generator=torch.Generator().manual_seed(0))
    whole = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    expected = plain.run(tokens)[1]
    assert (model.unembed(model.run(whole)) - expected).norm() / expected.norm() < 1e-5
    longer = torch.cat([tokens, tokens[:, :1]], dim=1)
    with pytest.raises(DriftlensError, match=f"a row has {model.n_ctx + 1} tokens, but .* reads at most {model.n_ctx}"):
        model.run(Batch(longer, torch.ones_like(longer, dtype=torch.bool)))
    # What it would be: Hugging Face gives the same tokens other numbers once the batch holds a longer row.
    beyond = plain.run(torch.cat([longer, longer.flip(1)]))[1][:1, : model.n_ctx]
    assert (beyond - expected).norm() / expected.norm() > 0.01


def test_dynamic_scaling_is_run_up_to_its_boundary_only():
    from transformers import LlamaConfig

    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(max_position_embeddings=32, rope_parameters=dynamic)
    assert longest_row(config, 64) == 32
    assert longest_row(LlamaConfig(max_position_embeddings=32), 32) == 32


# --- what is refused ---


@pytest.mark.parametrize("architecture", ["FalconForCausalLM", "BloomForCausalLM", "MixtralForCausalLM"])
def test_an_unknown_architecture_says_what_to_do(copied: Any, architecture: str):
    refused(
        changed(copied("gpt2"), architectures=[architecture]),
        f"unsupported architecture {architecture}", "Qwen2ForCausalLM", "load_model(..., family=Family(...))",
    )  # fmt: skip


def test_gpt_neox_without_biases_in_attention(tmp_path: Path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=400, intermediate_size=16, attention_bias=False, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, bos=False)
    refused(tmp_path, "unsupported neox model", "attention_bias=False")


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "norms stand after the sublayers"),
        ("opt", {"word_embed_proj_dim": 24}, "opt-350m"),
        ("gemma3", {"use_bidirectional_attention": True}, "looks ahead"),
        ("qwen2-window", {"layer_types": ["chunked_attention"] * 3}, "unsupported attention chunked_attention"),
    ],
)
def test_checkpoints_of_a_family_that_are_different(copied: Any, family: str, values: dict[str, Any], message: str):
    refused(changed(copied(family), **values), message)


def test_an_adapter_beside_the_weights_is_not_ignored(copied: Any):
    folder = copied("gpt2")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter_config.json", "merge_and_unload")


def test_a_token_beyond_the_models_vocabulary(copied: Any):
    folder = copied("llama")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {"id": 400, "content": "<extra>", "special": False, "single_word": False, "normalized": False}
    tokenizer["added_tokens"].append({**added, "lstrip": False, "rstrip": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = load_model(folder, device="cpu")
    assert model.encode("in Paris")
    for call in (model.encode, lambda text: model.encode_many(["in Paris", text])):
        with pytest.raises(DriftlensError, match=r"token 400 \('<extra>'\), but .* has only 400 tokens"):
            call("in <extra> Paris")


# --- the self-check ---


def test_a_window_that_a_family_forgets_is_found(checkpoints: Any):
    class Blind(Family):
        def windows(self, config: Any) -> tuple[int | None, ...]:
            return (None,) * config.num_hidden_layers

    blind = Blind(name="blind", blocks="model.layers", down_projection="mlp.down_proj")
    refused(checkpoints("mistral"), "self-check", "logits are off", family=blind)


def test_the_check_puts_windows_back(checkpoints: Any):
    for family in ("gemma2", "gptneo"):
        model: Any = LensModel(load_tiny(checkpoints(family)).model)
        assert model.checked is not None
        assert set(model._backend.windows) == {None, WINDOW}
        huggingface = model.model.original_model
        tokens = torch.randint(2, model.d_vocab, (1, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
        expected = PlainModel(checkpoints(family)).run(tokens)[1]
        assert (huggingface(input_ids=tokens).logits - expected).norm() / expected.norm() < 1e-5


def test_a_norm_that_a_family_forgets_is_found(checkpoints: Any):
    forgetful = Family(name="forgetful", blocks="model.layers", down_projection="mlp.down_proj")
    # TransformerLens's own name for the MLP's output is behind the norm.
    refused(checkpoints("olmo2"), "self-check", "is not its MLP's output", family=forgetful)


def test_an_output_that_does_not_reach_the_residual_stream_as_it_is(checkpoints: Any):

    model = load_tiny(checkpoints("olmo2"))
    model.adds_to_resid = lambda site: site == "mlp_out"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DriftlensError, match=r"mlp\.out\.hook_out reaches the block's output altered"):
        model._check()


# --- a family of the user's own ---


class Granite(Family):
    def embed(self, bridge: Any, tokens: Tensor, positions: Tensor) -> Float[Tensor, "rows seq d_model"]:
        return super().embed(bridge, tokens, positions) * bridge.original_model.config.embedding_multiplier

    def unembed(self, bridge: Any, resid: Tensor) -> Tensor:
        return super().unembed(bridge, resid) / bridge.original_model.config.logits_scaling


GRANITE = Granite(name="granite", blocks="model.layers", down_projection="mlp.down_proj", rescaled_outputs=True)


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GraniteConfig, GraniteForCausalLM

    folder = tmp_path_factory.mktemp("granite")
    config = GraniteConfig(
        vocab_size=400, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, embedding_multiplier=3.0, residual_multiplier=0.3,
        attention_multiplier=0.4, logits_scaling=2.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, bos=False)
    return folder


def test_a_family_of_ones_own(granite: Path):
    refused(granite, "unsupported architecture GraniteForCausalLM")
    plain_family = Family(name="granite", blocks="model.layers", down_projection="mlp.down_proj")
    refused(granite, "logits are off", family=plain_family)
    model = load_model(granite, device="cpu", family=GRANITE)
    assert model.family == "granite"
    tokens = torch.randint(2, 400, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = PlainModel(granite).run(tokens)[1]
    found = model.unembed(model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))))
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert LensModel(model.model, family=GRANITE).checked


def test_a_registered_family_is_known_to_every_load(granite: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("driftlens.models.families.FAMILIES", dict(FAMILIES))
    register_family("GraniteForCausalLM", GRANITE)
    assert load_model(granite, device="cpu").family == "granite"


def test_an_installed_package_offers_its_families(granite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("driftlens.models.families.FAMILIES", dict(FAMILIES))
    package = tmp_path / "offering-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    entry = "[driftlens.families]\nGraniteForCausalLM = offering:GRANITE\nOddForCausalLM = offering:ODD\n"
    (package / "entry_points.txt").write_text(entry)
    (tmp_path / "offering.py").write_text(f"from {__name__} import GRANITE\nODD = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model(granite, device="cpu").family == "granite"
    sys.modules.pop("offering", None)
    folder = Path(shutil.copytree(granite, tmp_path / "odd"))
    refused(changed(folder, architectures=["OddForCausalLM"]), "offering:ODD", "expected a Family")


def test_an_architecture_of_ones_own_with_its_adapter(checkpoints: Any):
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter

    class Adapter(LlamaArchitectureAdapter):
        built: bool = False

        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            Adapter.built = True

    mine = Family(name="mine", blocks="model.layers", down_projection="mlp.down_proj", adapter=Adapter)
    try:
        assert load_model(checkpoints("llama"), device="cpu", family=mine).family == "mine"
    finally:
        ArchitectureAdapterFactory.register_adapter("LlamaForCausalLM", LlamaArchitectureAdapter)
    assert Adapter.built


def test_bfloat16(tmp_path: Path):
    """Norms, soft caps and windows in half precision, where a mask of -inf would give NaN."""
    for family in ("gemma2", "phi3", "gptneo", "opt", "olmo2"):
        folder = tiny_checkpoint(family, tmp_path / family, dtype=torch.bfloat16)
        model = load_model(folder, device="cpu")
        assert model.dtype == torch.bfloat16
        tokens = torch.randint(2, model.d_vocab, (1, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
        found = model.unembed(model.run(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)))).float()
        expected = PlainModel(folder, dtype=torch.bfloat16).run(tokens)[1].float()
        assert (found - expected).norm() / expected.norm() < 0.05


def test_windows_as_a_configuration_states_them():
    from transformers import MistralConfig, Qwen2Config

    assert sliding_windows(MistralConfig(num_hidden_layers=2, sliding_window=None)) == (None, None)
    assert sliding_windows(MistralConfig(num_hidden_layers=2, sliding_window=9)) == (9, 9)
    qwen = Qwen2Config(num_hidden_layers=3, use_sliding_window=True, sliding_window=9, max_window_layers=2)
    assert sliding_windows(qwen) == (None, None, 9)
    assert sliding_windows(Qwen2Config(num_hidden_layers=2, sliding_window=9)) == (None, None)
