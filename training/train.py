"""Train the bundled model from a seed: `python -m training.train`.

A GPT-2 of four million parameters learns the invented world in about half an hour on two cores. Everything
follows from the seed: the world, its tokenizer, the texts of each step. Beside the output folder lies a
checkpoint from which an interrupted training goes on; it is removed at the end. Then recall is measured on
the saved weights, and the model card and the benchmark records are written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from driftlens.demo import RECORDS, SEED, WEIGHTS
from driftlens.demo.world import World, build_world
from driftlens.files import writable_folder
from training.batches import Batches
from training.card import TrainingFacts, model_card
from training.recall import measure_recall, sampled_facts
from training.records import benchmark_records, write_records
from training.tokenizer import train_tokenizer
from training.trainer import Recipe, Trainer, text_loss

SAMPLE = 200
"""Facts whose recall is shown on the way."""


def train(recipe: Recipe, out: Path, *, device: str, console: Console, checkpoint_every: int = 50) -> None:
    """Train, save, measure, and write the card; `out` is a folder to make or to overwrite."""
    writable_folder(out)
    world = build_world(recipe.seed)
    tokenizer = train_tokenizer(recipe.seed)
    trainer = Trainer(recipe, world, tokenizer, device)
    checkpoint = out.with_name(out.name + ".checkpoint.safetensors")
    if trainer.load_checkpoint(checkpoint):
        console.print(f"going on from step {trainer.step}, saved in {checkpoint}")
    console.print(f"{len(world.subjects)} subjects, {len(world.facts)} facts; {recipe.steps} steps on {device}")
    _advance_to_the_end(trainer, world, tokenizer, checkpoint, checkpoint_every, console)
    save_model(trainer.model, tokenizer, out)
    facts = _measure(trainer, world, out)
    (out / "README.md").write_text(model_card(world, facts), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    console.print(f"recall {facts.trained.exact:.2%}, of held-out templates {facts.held_out.exact:.2%}: {out}")


def _advance_to_the_end(
    trainer: Trainer,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    checkpoint_every: int,
    console: Console,
) -> None:
    sample = sampled_facts(world, SAMPLE)
    steps = trainer.recipe.steps
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=steps, completed=trainer.step)
        while trainer.step < steps:
            loss = trainer.advance()
            progress.update(bar, completed=trainer.step, description=f"loss {loss:.3f}")
            if trainer.step % checkpoint_every and trainer.step < steps:
                continue
            # The last step leaves a checkpoint too: what comes after it can fail (a full disk) and be repeated.
            trainer.save_checkpoint(checkpoint)
            recall = measure_recall(trainer.model, tokenizer, sample, held_out=True, templates_per_fact=1)
            subjects = trainer.batches.active_subjects(trainer.step)
            progress.console.print(
                f"step {trainer.step}: loss {loss:.3f}, {subjects} subjects, held-out recall {recall.exact:.1%}, "
                f"{trainer.seconds / 60:.1f} min",
                soft_wrap=True,
            )


def save_model(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Hugging Face folder with fp16 weights whose configuration asks for fp32, the tied head saved once."""
    halves = {name: value.detach().half() for name, value in model.state_dict().items()}
    state = {name: value for name, value in halves.items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    (folder / "model.safetensors").chmod(0o644)
    # Both names of the setting, for older and newer releases of transformers.
    _amend(
        folder / "config.json",
        activation_function="gelu_new",
        dtype="float32",
        torch_dtype="float32",
    )
    _amend(folder / "generation_config.json", pad_token_id=tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder)
    _amend(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", backend=None)


def _amend(path: Path, **settings: Any) -> None:
    merged = json.loads(path.read_text(encoding="utf-8")) | settings
    kept = {key: value for key, value in merged.items() if not (key in settings and value is None)}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _measure(trainer: Trainer, world: World, folder: Path) -> TrainingFacts:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(trainer.device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    steps = trainer.recipe.steps
    return TrainingFacts(
        trained=measure_recall(model, tokenizer, world.facts, held_out=False),
        held_out=measure_recall(model, tokenizer, world.facts, held_out=True),
        minutes=trainer.seconds / 60,
        device=f"{torch.get_num_threads()} CPU cores" if trainer.device == "cpu" else trainer.device,
        steps=steps,
        final_loss=_unseen_loss(model, trainer.batches, steps, trainer.device),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
    )


def _unseen_loss(model: Any, batches: Batches, steps: int, device: str, count: int = 8) -> float:
    """Mean loss on the texts of the steps that would come next."""
    with torch.no_grad():
        losses = [text_loss(model, batches.batch(steps + i).to(device)).item() for i in range(count)]
    return sum(losses) / count


def main(arguments: list[str] | None = None) -> None:
    """Command line of `python -m training.train`."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights (default: the bundled one)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of world, tokenizer and training")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help=f"training steps (default {Recipe.steps})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    recipe = Recipe(steps=options.steps, seed=options.seed)
    train(recipe, options.out, device=options.device, console=console)
    bundled = options.out.resolve() == WEIGHTS.resolve()
    records = RECORDS if bundled else options.out.with_name(options.out.name + ".records.json")
    write_records(benchmark_records(build_world(options.seed)), records)
    console.print(f"records: {records}")


if __name__ == "__main__":
    main()
