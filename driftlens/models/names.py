"""Resolve a model's name: the bundled model, a local folder, or a model on the Hugging Face hub."""

from difflib import get_close_matches
from pathlib import Path

from driftlens.errors import DriftlensError
from driftlens.files import path_of

__all__ = ["DEMO_WEIGHTS", "KNOWN_MODELS", "everywhere", "resolve", "suggestion"]

DEMO_WEIGHTS = Path(__file__).resolve().parent.parent / "demo" / "weights"

# Names to suggest when one is not found. Any checkpoint of the supported families loads, listed here or not.
KNOWN_MODELS = (
    "demo",
    "smollm2-135m",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "distilgpt2",
    "EleutherAI/gpt-j-6b",
    "EleutherAI/gpt-neox-20b",
    "EleutherAI/pythia-70m",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-410m",
    "EleutherAI/pythia-1.4b",
    "EleutherAI/pythia-2.8b",
    "EleutherAI/pythia-6.9b",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Llama-3.2-1B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "google/gemma-2-2b",
    "google/gemma-3-270m",
    "google/gemma-3-1b-pt",
    "microsoft/Phi-3-mini-4k-instruct",
    "allenai/OLMo-2-0425-1B",
    "EleutherAI/gpt-neo-125m",
    "facebook/opt-1.3b",
    "bigcode/starcoder2-3b",
)


def resolve(name: str) -> tuple[str, bool]:
    """The place to load from, and whether it is local, in which case the network must not be used."""
    if name == "demo":
        if not (DEMO_WEIGHTS / "config.json").is_file():
            raise DriftlensError(f"the bundled model is missing from {DEMO_WEIGHTS}; reinstall driftlens")
        return str(DEMO_WEIGHTS), True
    folder = path_of(name) if name.strip() else None
    if folder is not None and folder.exists():
        _require_checkpoint(folder, name)
        return str(folder), True
    if name.endswith(".gguf"):
        raise DriftlensError(f"there is no file {name}; give the path of a GGUF file")
    if name in KNOWN_MODELS:
        return name, False
    # On the hub only the few old names listed above have no owner.
    if name.count("/") != 1 or name[0] in "./~" or name[-1] == "/":
        raise DriftlensError(f"unknown model {name!r}: there is no such folder{suggestion(name)}")
    return name, False


def everywhere(name: str) -> str:
    """The name by which a process in another folder finds the same model."""
    folder = path_of(name)
    return str(folder.absolute()) if name != "demo" and folder.exists() else name


def suggestion(name: str) -> str:
    """The end of an error about an unknown name: similar names, or the accepted kinds of names."""
    near_names = {known.lower(): known for known in KNOWN_MODELS}
    near_names |= {known.lower().split("/")[-1]: known for known in KNOWN_MODELS}
    near = [near_names[match] for match in get_close_matches(name.lower(), near_names, n=3)]
    if name in near:
        return "; the name is right, so look at the network, or at HF_HUB_OFFLINE, or give a local folder"
    if near:
        return f"; did you mean {' or '.join(dict.fromkeys(near))}?"
    return "; expected 'demo', a name on the Hugging Face hub such as gpt2-xl, a model folder or a .gguf file"


def _require_checkpoint(folder: Path, name: str) -> None:
    if folder.is_file():
        if folder.suffix != ".gguf":
            raise DriftlensError(f"{name} is a file; expected a Hugging Face model folder or a .gguf file")
        return
    if not (folder / "config.json").is_file():
        raise DriftlensError(f"{name} holds no config.json; expected a Hugging Face model folder")
    if (folder / "adapter_config.json").is_file():
        raise DriftlensError(
            f"{name} holds a PEFT adapter (adapter_config.json), which would be ignored; merge it into the weights "
            f"(merge_and_unload, then save_pretrained), or remove the file to use the model without it"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    found = f"found only {pickles[0].name}, and such files can run code" if pickles else "found no weights"
    raise DriftlensError(
        f"{name} holds no safetensors file ({found}); convert it in Python: "
        f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
    )
