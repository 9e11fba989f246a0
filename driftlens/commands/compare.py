"""`driftlens compare`: pairs of texts, the page on which people compare them, and a server that collects answers.

1. Options, data and the output folder are checked before a model is loaded.
2. Texts are generated under both sides' edits, which are cached, or taken from two runs.
3. The key is written before the page, because answers cannot be read without it.
4. With `--serve`, the study, whether new or found in the folder, is served until interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftlens.commands.compare_options import CompareOptions, Side, read_options
from driftlens.commands.fetch import fetch_first
from driftlens.data import Fact, Record, load_records
from driftlens.errors import DriftlensError
from driftlens.files import output_folder, write_together
from driftlens.options.editing import editor_text, make_editor
from driftlens.options.moments import choose_corpus, with_second_moments

if TYPE_CHECKING:
    from rich.progress import Progress

    from driftlens.display.terminal import Terminal
    from driftlens.edits import Edit
    from driftlens.human import Comparison, TextPair
    from driftlens.models import LensModel

__all__ = ["main"]

PAGE = "compare.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Write a study's page and key, or serve it."""
    options = read_options(argv)
    from driftlens.display.terminal import shown_warnings, standard_error, standard_output
    from driftlens.human import KEY, Comparison

    errors, out = standard_error(), standard_output()
    say = partial(out.print, soft_wrap=True)  # a link or a path is one line, however long
    found = Path(options.out) / KEY
    with output_folder(options.out, (KEY, PAGE)) as folder, shown_warnings(errors):
        if found.exists():
            comparison = Comparison.load(found)
            if not options.serve and comparison.about.get("options") != _identity(options):
                raise DriftlensError(
                    f"{folder} holds another study, and without its {KEY} answers to it could not be read; choose "
                    "another --out, or delete that folder"
                )
        else:
            comparison = _made(options, errors)
            comparison.save(found)
        _write_page(comparison, folder)
        n_checks = len(comparison.items) - len(comparison.pairs)
        say(f"{_counted(len(comparison.pairs), 'pair')} and {_counted(n_checks, 'attention check')}")
        for systems in comparison.systems.values():
            say(f"  {systems.challenger} against {systems.baseline}")
        say(f"wrote {folder / PAGE}: send it to the annotators")
        say(f"wrote {found}: keep it, only it says who wrote what")
        if options.serve:
            _serve(comparison, folder, options, out)
        else:
            say(f"then: driftlens agree ANSWERS.json … --key {found}")
    return 0


def _identity(options: CompareOptions) -> dict[str, str]:
    """Everything that a study depends on, as text; a folder holds one study."""
    free = ("out", "serve", "host", "port", "annotators", "batch_size", "device")
    return {name: repr(value) for name, value in vars(options).items() if name not in free}


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _write_page(comparison: Comparison, folder: Path) -> None:
    from driftlens.human import comparison_page

    write_together(folder, {PAGE: comparison_page(comparison)})


def _made(options: CompareOptions, errors: Terminal) -> Comparison:
    """Make the study that the options describe."""
    from driftlens.human import Comparison, Systems

    setting = options.baseline.name
    about: dict[str, Any] = {"options": _identity(options)}
    wanted = options.records + min(options.checks, 2)
    if options.baseline.is_run:
        pairs = _of_runs(options, setting)
    else:
        pairs = _of_edits(options, setting, wanted, about, errors)
    if len(pairs) < options.records:
        errors.print(f"driftlens: only {len(pairs)} pairs could be made, not {options.records}")
    return Comparison.of(
        pairs[: options.records],
        {setting: Systems(baseline=options.baseline.name, challenger=options.challenger.name)},
        spares=pairs[options.records : wanted],
        checks=options.checks,
        seed=options.seed,
        title=options.title,
        about=about,
    )


def _of_runs(options: CompareOptions, setting: str) -> list[TextPair]:
    import pandas as pd

    from driftlens.human import pairs_of_texts

    tables: list[pd.DataFrame] = []
    for side in (options.baseline, options.challenger):
        path = Path(side.folder or "") / "generations.parquet"
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            raise DriftlensError(f"cannot read {path} ({error}); run driftlens evaluate again") from error
    return pairs_of_texts(load_records(options.data), *tables, setting=setting)


def _of_edits(
    options: CompareOptions, setting: str, wanted: int, about: dict[str, Any], errors: Terminal
) -> list[TextPair]:
    data = load_records(options.data)
    saved = {side.name: _saved_edits(side) for side in (options.baseline, options.challenger) if side.folder}
    records = _records(options, data, list(saved.values()))[:wanted]
    from driftlens.display.terminal import progress_bars, progress_line, while_shown
    from driftlens.human import write_pairs

    fetch_first(options.model)

    with progress_bars(errors) as bars:
        with while_shown(bars, "load model"):
            model = options.load()
        about["model"] = {"name": Path(model.name).name, "hash": model.model_hash}
        edits = [
            _edits(options, side, model, records, data, saved.get(side.name), about, bars)
            for side in (options.baseline, options.challenger)
        ]
        return write_pairs(
            model,
            records,
            *edits,
            setting=setting,
            seed=options.seed,
            max_tokens=options.max_tokens,
            batch_size=options.batch_size,
            on_rows=progress_line(bars, "write texts"),
        )


def _records(
    options: CompareOptions, data: Sequence[Record], saved: Sequence[dict[tuple[str, ...], Edit]]
) -> list[Record]:
    """The records of the split, or those whose edits were saved."""
    splits = {record.split for record in data if record.split is not None}
    if options.split is not None and options.split not in splits:
        told = f"it has {', '.join(sorted(splits))}" if splits else "it has none"
        raise DriftlensError(f"{options.data} has no split {options.split!r}; {told}")
    if saved:
        shared = [record for record in data if all(_request(record.fact) in edits for edits in saved)]
        if not shared:
            raise DriftlensError(
                f"no record of {options.data} has an edit in every folder; name the data that the edits were made on"
            )
        return [record for record in shared if options.split in (None, record.split)]
    split = options.split or ("test" if "test" in splits else None)
    return [record for record in data if split in (None, record.split)]


def _edits(
    options: CompareOptions,
    side: Side,
    model: LensModel,
    records: Sequence[Record],
    data: Sequence[Record],
    saved: dict[tuple[str, ...], Edit] | None,
    about: dict[str, Any],
    bars: Progress,
) -> list[Edit | None]:
    """The side's edit of every record."""
    from driftlens.display.terminal import while_shown
    from driftlens.files import cache_folder
    from driftlens.runs.edit_cache import cached_edits

    if saved is not None:
        return [saved[_request(record.fact)] for record in records]
    if side.editor is None or side.editor.editor == "none":
        return [None] * len(records)
    editor = make_editor(model, side.editor)
    corpus = choose_corpus(
        options.model, side.editor.corpus, data, given=side.editor.second_moment, editor=side.editor.editor
    )
    with while_shown(bars, "second moments") as done:
        editor = with_second_moments(model, editor, corpus, on_texts=done)
    about[side.name] = editor_text(editor)
    facts = [record.fact for record in records]
    with while_shown(bars, f"edit ({side.name})") as done:
        return [*cached_edits(model, editor, facts, cache_folder() / "edits", on_facts=done)]


def _saved_edits(side: Side) -> dict[tuple[str, ...], Edit]:
    """The edits of a folder by their requests."""
    from driftlens.edits import Edit

    found: dict[tuple[str, ...], Edit] = {}
    for path in sorted(Path(side.folder or "").glob("*.safetensors")):
        edit = Edit.load(path)
        told = [edit.provenance.get(name, "") for name in ("subject", "prompt", "target_true", "target_new")]
        found[tuple(told)] = edit
    return found


def _request(fact: Fact) -> tuple[str, ...]:
    return fact.subject, fact.prompt, fact.target_true, fact.target_new


def _serve(comparison: Comparison, folder: Path, options: CompareOptions, out: Terminal) -> None:
    import ipaddress
    import socket

    from driftlens.human.server import ANSWERS, links, serve

    say = partial(out.print, soft_wrap=True)
    database = folder / ANSWERS
    people, overview = links(database, comparison, options.annotators)

    def tell(port: int) -> None:
        host = options.host
        try:
            everywhere = ipaddress.ip_address(host).is_unspecified
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            everywhere, local = False, host == "localhost"
        shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
        start = f"http://{shown}:{port}"
        say("\none link for each annotator:")
        for name, path in people.items():
            say(f"  {name}  {start}{path}")
        say(f"for yourself, how far they are: {start}{overview}")
        if local:
            say("only this machine can open them; --host 0.0.0.0 lets others in")
        else:
            say("plain HTTP: anyone who reads this network's traffic can read along; use it in networks you trust")
        say(f"answers: {database} (driftlens agree {database}); Ctrl-C ends")
        out.file.flush()

    serve(comparison, database, host=options.host, port=options.port, on_ready=tell)
