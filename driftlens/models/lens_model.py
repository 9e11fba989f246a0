"""`LensModel`: one model as driftlens sees it, whatever TransformerLens class is inside.

A pass (`run`) goes from any layer to any layer and returns the residual stream; the head is a separate step
(`unembed`), so that it is computed only at the positions that need it. What a pass costs is the blocks it
names: lower blocks are not run when their result is given, and a prefix's keys and values can be computed
once and reused.
"""

import copy
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models.backend import Backend, Columns, Hook, chosen
from driftlens.models.batch import Batch, standing, visible_columns
from driftlens.models.chat import RAW, Frame, chat_frame
from driftlens.models.encoding import Encoding, adds_bos, encode, own_tokenizer, special_tokens
from driftlens.models.families import Family
from driftlens.models.fingerprint import DIGITS, Fingerprint, tokenizer_digest
from driftlens.models.grouping import read_pays
from driftlens.models.key_values import KeyValues, PassCache
from driftlens.models.names import title
from driftlens.models.pass_costs import initial_pass_cost
from driftlens.models.quantised import refuse_writing
from driftlens.models.self_check import WINDOW, SelfCheck, check_rows, self_check
from driftlens.models.sharing import Shared, Written, shared
from driftlens.models.sites import Site

__all__ = ["LensModel", "check_loaded"]

# TransformerLens's names; on a bridge they are aliases of its own, so hooks are written once for both.
_SITES: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    "z": "attn.hook_z",
}


# Where a family rescales these before it adds them, TransformerLens's names are what is added; these, what is rescaled.
_UNSCALED: Mapping[str, str] = {"attn_out": "attn.o.hook_out", "mlp_out": "mlp.out.hook_out"}


class LensModel:
    """A TransformerLens model with raw weights, in eval mode, with frozen parameters.

    `model` is a `TransformerBridge` of transformer-lens 4.x or an unprocessed `HookedTransformer` of 3.9; it
    is put into eval mode and its parameters are frozen. `tokenizer` is needed only where the one inside the
    model is not to be used. `source` says in words where the weights come
    from. `check` runs the self-check, whose result is kept as `checked`. `family` says what the model's architecture
    does differently, where driftlens does not know it.
    """

    frame: Frame = RAW
    """What stands around every prompt: nothing, or a chat template (`chat`)."""
    pass_cost: float
    """What a pass costs besides its tokens, in tokens; rows share passes by it (:mod:`driftlens.models.grouping`).  It
    changes speed alone.  What `driftlens profile` has measured on this machine, else an estimate for the device
    (:mod:`driftlens.models.pass_costs`)."""

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        source: str | None = None,
        check: bool = True,
        tokenizer: Any = None,
        family: Family | None = None,
    ) -> None:
        backend = _backend_of(model, family)
        reason = backend.processed()
        if reason is not None:
            raise DriftlensError(
                f"the model's weights are not the checkpoint's: {reason}; hand over an unprocessed model"
            )
        if hooks := backend.foreign_hooks():
            raise DriftlensError(
                f"a hook is left on the model at {hooks[0]}, and would change every number; remove it first, with "
                "reset_hooks() if it is TransformerLens's"
            )
        self._backend: Backend = backend
        self._fingerprint = Fingerprint(backend)
        self._known = (-1, "")  # at which write the hash was taken, and the hash
        self._unchanged = 0
        self.model = model
        self.name: str = name or str(model.cfg.model_name)
        self.source: str = source or f"a {type(model).__name__} of your own"
        self._tokenizer: Any = tokenizer if tokenizer is not None else own_tokenizer(model.tokenizer)
        self.backend: str = backend.name
        self.family: str = backend.family.name
        self.parallel_blocks: bool = backend.parallel_blocks
        dimensions = backend.dimensions
        self.n_layers: int = dimensions.n_layers
        self.n_heads: int = dimensions.n_heads
        self.d_model: int = dimensions.d_model
        self.d_mlp: int = dimensions.d_mlp
        self.d_head: int = dimensions.d_head
        self.d_vocab: int = dimensions.d_vocab
        self.n_ctx: int = dimensions.n_ctx
        self.pass_cost = initial_pass_cost(self)
        self.checked: SelfCheck | None = self._check() if check else None

    @property
    def title(self) -> str:
        """The model's own name, without owner or path, for people to read."""
        return title(self.name)

    def __repr__(self) -> str:
        chat = ", chat" if self.frame else ""
        return f"LensModel({self.name!r}, {self.family}, {self.n_layers} layers, {self.dtype}, {self.device}{chat})"

    def _repr_html_(self) -> str:
        from driftlens.display.cards import lens_model

        return lens_model(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are; batches and residuals must be there too."""
        return self._backend.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of the residual stream."""
        return self._backend.dtype

    # --- what it is now, and whose ---

    @property
    def model_hash(self) -> str:
        """20 hexadecimal digits that name the model as it is now: weights, configuration and tokenizer.

        Edits that are written into the weights are part of it, and so is any other change of a weight, however small.
        All weights are read each time, at about the speed of memory.

        Raises:
            DriftlensError: a hook is on the model, and nobody can say what it does.
        """
        if hooks := self.foreign_hooks:
            raise DriftlensError(
                f"a hook is on the model at {hooks[0]}, so what is computed with it cannot be told from the model's "
                "own; remove it first, with reset_hooks() if it is TransformerLens's"
            )
        with self.exclusive():
            if self._unchanged and self._known[0] == self._shared.writes:
                return self._known[1]
            parts = [self._fingerprint.now(), self._tokenizer_digest]
            found = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGITS]
            self._known = (self._shared.writes, found)
        return found

    @contextmanager
    def unchanged(self) -> Generator[None]:
        """A promise that only `rewritten` changes weights meanwhile, so that `model_hash` reads them once."""
        with self.exclusive():
            if not self._unchanged:
                self._known = (-1, "")
            self._unchanged += 1
        try:
            yield
        finally:
            with self.exclusive():
                self._unchanged -= 1

    @cached_property
    def _tokenizer_digest(self) -> str:
        return "" if self._tokenizer is None else tokenizer_digest(self._tokenizer)

    @property
    def foreign_hooks(self) -> list[str]:
        """Where hooks are on the model between passes: somebody else's, TransformerLens's or PyTorch's own."""
        with self.exclusive():
            return self._backend.foreign_hooks()

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """The model for this thread alone; another that wants it waits."""
        with self._shared.exclusive():
            yield

    @property
    def written(self) -> tuple[Written, ...]:
        """What is written into the weights at the moment, in the order in which it was."""
        return tuple(self._shared.written)

    @contextmanager
    def rewritten(
        self, change: Callable[[Site, Tensor], Tensor], *, sites: Iterable[Site], what: object
    ) -> Generator[None]:
        """`change(site, weight)` written into `sites`; every bit is restored on leaving, also after an exception.

        The thread has the model for itself until then, and `written` lists `what`.

        Raises:
            DriftlensError: the model is quantised; or contexts that lie inside one another are not left in reverse
                order, and then the weights are restored when the last of them is left.
        """
        self._require_writable("no edit can be written into its weights")
        with self.exclusive():
            entry = Written(what=what, before=self.model_hash)
            entry.saved.update({site: self.linear(site)[0].detach().clone() for site in sites})
            stack = self._shared.written
            stack.append(entry)
            self._shared.writes += 1
            try:
                with torch.no_grad():
                    for site in entry.saved:
                        weight = self.linear(site)[0]
                        weight.copy_(change(site, weight))
                yield
            finally:
                entry.ended = True
                self._shared.writes += 1
                in_order = stack[-1] is entry
                while stack and stack[-1].ended:
                    with torch.no_grad():
                        for site, before in stack.pop().saved.items():
                            self.linear(site)[0].copy_(before)
                if not in_order:
                    raise DriftlensError(
                        "edits that are applied inside one another must be left in reverse order; this one is still in "
                        "the weights until the ones inside it are left"
                    )

    @property
    def quantisation(self) -> str | None:
        """How the weights are quantised, so that edits act as hooks only; None where they are not."""
        return self._backend.quantisation

    def _require_writable(self, wanted: str) -> None:
        if self.quantisation is not None:
            raise refuse_writing(self.name, self.quantisation, wanted)

    @property
    def _shared(self) -> Shared:
        return shared(self.model)

    # --- tokens ---

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's own fast tokenizer."""
        if self._tokenizer is None:
            raise DriftlensError(f"model {self.name} has no tokenizer; give one: LensModel(model, tokenizer=...)")
        return self._tokenizer

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS in front of every text, so that positions begin at 1."""
        return adds_bos(self.tokenizer)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special tokens, as they are written in a text."""
        return special_tokens(self.tokenizer)

    @cached_property
    def pad_id(self) -> int:
        """A token id for padding columns; which one does not matter, since masks say what is padding."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and 0 <= token < self.d_vocab:
                return int(token)
        return 0

    def chat(self, system: str | None = None) -> "LensModel":
        """The same model, weights and all, that reads every prompt as a user's message, by its own chat template.

        Whatever takes a prompt then works on chats: edits, traces, patches, drift, evaluation, generation, the clinic.
        Prompts, facts and records stay as they are; the template, with `system` as system prompt if given, is put
        around them where they become tokens, and a target follows where the assistant's answer begins. Context
        prefixes and distractors stand in the user's message.

        Raises:
            DriftlensError: the tokenizer has no chat template, or none that takes a system prompt.
        """
        view = copy.copy(self)
        view._known, view._unchanged = (-1, ""), 0  # what is promised for this one is not promised for that
        view.frame = chat_frame(self.tokenizer, system)
        return view

    def encode(self, text: str) -> Encoding:
        """Token ids and character offsets of a plain text, with the BOS that the tokenizer adds; never truncated."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str], *, complete: bool = False) -> list[Encoding]:
        """As `encode`, of many texts in less time than one by one; those that are `complete` get no BOS."""
        encodings = encode(self.tokenizer, texts, complete=complete)
        for encoding in encodings:
            unknown = next((token for token in encoding.ids if token >= self.d_vocab), None)
            if unknown is not None:
                raise DriftlensError(
                    f"the tokenizer gives token {unknown} ({self.tokenizer.decode([unknown])!r}), but {self.name} has "
                    f"only {self.d_vocab} tokens; leave it out of the text, or use the tokenizer made for the model"
                )
        return encodings

    # --- names and weights ---

    def hook_name(self, site: str, layer: int) -> str:
        """The hook point of a site: resid_pre, resid_post, attn_out, mlp_out, mlp_post, pattern, attn_scores
        or z.

        `mlp_post` and `mlp_out` are the input and the output of the MLP's down-projection in every family, `attn_out`
        the output of the attention's output projection: before the norm or factor that some families put after them.
        """
        if site not in _SITES:
            raise DriftlensError(f"unknown site {site!r}; expected one of {', '.join(_SITES)}")
        point = _UNSCALED.get(site) if self._backend.family.rescaled_outputs else None
        return f"blocks.{self._layer(layer)}.{point or _SITES[site]}"

    def adds_to_resid(self, site: str) -> bool:
        """Whether what is added at `mlp_out`, `attn_out` or `resid_post` is added, as it is, to the block's output.

        It is not where a norm or a factor follows the site, nor at `attn_out` where the MLP reads the attention's
        output.
        """
        if site == "resid_post":
            return True
        if self._backend.family.rescaled_outputs:
            return False
        return site == "mlp_out" or (site == "attn_out" and self.parallel_blocks)

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802 (the matrix\'s name everywhere)
        """The MLP's down-projection as a live view: changing it in place changes the model.

        Raises:
            DriftlensError: the model is quantised.
        """
        self._require_writable("has no matrix that could be changed in place")
        return self.down_projection(layer)[0]

    def down_projection(self, layer: int) -> tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, " d_model"] | None]:
        """`W_out` and the bias added behind it; None where the family has none. Of a quantised model a copy."""
        return self._backend.down_projection(self._layer(layer))

    def linear(self, site: Site) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
        """Weight, as a live view, and bias of one linear map of an MLP, `y = x W + b`; of a quantised model a copy.

        Raises:
            DriftlensError: a layer out of range, or a family without such a map.
        """
        return self._backend.linear(Site(self._layer(site.layer), site.map))

    def linear_shape(self, site: Site) -> tuple[int, int]:
        """`[d_in, d_out]` of one linear map of an MLP; raises as `linear`."""
        return self._backend.linear_shape(Site(self._layer(site.layer), site.map))

    def linear_hooks(self, site: Site) -> tuple[str, str]:
        """The hook points on a linear map's input and on its output."""
        if site.map == "mlp.out":
            return self.hook_name("mlp_post", site.layer), self.hook_name("mlp_out", site.layer)
        return self._backend.linear_hooks(Site(self._layer(site.layer), site.map))

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight, live, under the checkpoint's name."""
        return self._backend.named_tensors()

    def stored_name(self, site: Site) -> str | None:
        """The checkpoint's name for a linear map's weight; None where it has no tensor of its own there."""
        return self._backend.stored_name(site)

    # --- passes ---

    def run(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        stop: int | None = None,
        past: KeyValues | None = None,
        read: Int[Tensor, "rows read"] | None = None,
    ) -> Float[Tensor, "rows seq d_model"]:
        """Blocks `start` … `stop` − 1; the residual stream after the last of them, before the final norm.

        With `start` above 0, `resid` is the input of block `start` and no block below is run. With `past`,
        the batch holds only the columns after that prefix, and they attend to the prefix and to themselves.
        `hooks` are TransformerLens hook functions on names of `hook_name`; those on blocks outside the pass
        do not fire. With `read`, only these columns of each row are returned, in this order, and the last block
        computes little else: a column may be named twice.
        """
        return self._pass(batch, hooks=hooks, start=start, resid=resid, stop=stop, past=past, keep=0, read=read)[0]

    def keys_values(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        columns: int,
        past: KeyValues | None = None,
        read: Int[Tensor, "rows read"] | None = None,
    ) -> tuple[Float[Tensor, "rows seq d_model"], KeyValues]:
        """A pass to the last block that also keeps the keys and values of its first `columns` columns.

        With `past`, the batch holds only the columns after that prefix, and what is kept is the prefix with
        these columns behind it. With `read`, only these columns of the residual stream are returned, as by `run`.
        """
        if not 0 < columns <= batch.shape[1]:
            raise DriftlensError(f"cannot keep {columns} columns of a batch of {batch.shape[1]}; expected 1 or more")
        resid, cache = self._pass(
            batch, hooks=hooks, start=start, resid=resid, stop=None, past=past, keep=columns, read=read
        )
        assert cache is not None
        mask = batch.mask[:, :columns]
        if past is not None:
            mask = torch.cat([past.mask, mask], dim=-1)
        return resid, KeyValues(mask=mask, keys=cache.kept_keys, values=cache.kept_values, column_dim=cache.column_dim)

    def prefix(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook] = (),
        start: int = 0,
        resid: Float[Tensor, "rows seq d_model"] | None = None,
        columns: int,
        past: KeyValues | None = None,
    ) -> KeyValues:
        """The keys and values of `keys_values` alone: of the last block no more is computed."""
        none = batch.tokens[:, :0]
        return self.keys_values(batch, hooks=hooks, start=start, resid=resid, columns=columns, past=past, read=none)[1]

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Final norm and head: `unembed(run(batch))` are the model's logits."""
        with torch.autocast(self.device.type, enabled=False):
            return self._backend.unembed(resid.to(self.dtype))

    def export(self, folder: str | PathLike[str], weights: Mapping[Site, Tensor] | None = None) -> None:
        """A Hugging Face folder of this model and its tokenizer, some `[d_in, d_out]` weights replaced."""
        from driftlens.models.export import export

        self._require_writable("it cannot be exported")
        export(self, self._backend, folder, weights or {})

    def _check(self) -> SelfCheck:
        with self._backend.narrowed(WINDOW):
            rows = check_rows(self.d_vocab, self.n_ctx)
            return self_check(self, [self._backend.reference_logits(row.to(self.device)) for row in rows])

    def _pass(self, batch: Batch, **how: Any) -> tuple[Tensor, PassCache | None]:
        # Autocast would round what is computed here and not what it is compared with.
        with self.exclusive(), torch.autocast(self.device.type, enabled=False):
            return self._exclusive_pass(batch, **how)

    def _exclusive_pass(
        self,
        batch: Batch,
        *,
        hooks: Sequence[Hook],
        start: int,
        resid: Tensor | None,
        stop: int | None,
        past: KeyValues | None,
        keep: int,
        read: Tensor | None,
    ) -> tuple[Tensor, PassCache | None]:
        stop = self.n_layers if stop is None else stop
        if not 0 <= start <= stop <= self.n_layers:
            raise DriftlensError(f"cannot run blocks {start} to {stop}; the model has blocks 0 to {self.n_layers}")
        if resid is None and start > 0:
            raise DriftlensError(f"a pass that starts at block {start} needs resid, the input of that block")
        columns = self._columns(batch, past)
        if resid is None:
            resid = self._backend.embed(batch.tokens, columns.positions)
        elif resid.shape != (*batch.shape, self.d_model):
            raise DriftlensError(
                f"resid has shape {tuple(resid.shape)}; this batch needs {(*batch.shape, self.d_model)}"
            )
        cache = None
        if past is not None or keep:
            cache = PassCache(past, keep=keep, column_dim=self._backend.column_dim)
        layers = range(start, stop)
        with self._backend.attached(hooks):
            if read is None:
                resid = self._backend.run_blocks(resid.to(self.dtype), layers, columns, cache)
            # What hooks on the last block see is always all columns.
            elif layers and not _on_block(layers[-1], hooks) and read_pays(read, *batch.shape, self.pass_cost):
                resid = self._backend.run_blocks(resid.to(self.dtype), layers[:-1], columns, cache)
                resid = self._backend.run_block_at(resid, layers[-1], columns, cache, read)
            else:
                resid = chosen(self._backend.run_blocks(resid.to(self.dtype), layers, columns, cache), read)
        return resid, cache

    def _columns(self, batch: Batch, past: KeyValues | None) -> Columns:
        mask = batch.mask
        if past is not None:
            if past.mask.shape[0] != batch.shape[0]:
                raise DriftlensError(
                    f"the prefix has {past.mask.shape[0]} rows and the batch {batch.shape[0]}; "
                    f"choose the prefix's rows with select()"
                )
            mask = torch.cat([past.mask, mask], dim=-1)
        visible = visible_columns(batch, None if past is None else past.mask)
        positions = standing(visible)
        before = positions[:, :0] if past is None else past.mask.cumsum(-1) - 1
        if mask.shape[1] > self.n_ctx:
            longest = int(positions.masked_fill(~batch.mask, 0).max()) + 1
            if longest > self.n_ctx:
                raise DriftlensError(
                    f"a row has {longest} tokens, but {self.name} reads at most {self.n_ctx}; shorten the prompt"
                )
        # A row without a token of its own behind a full prefix would otherwise stand beyond the context.
        return Columns(
            positions=positions.clamp(max=self.n_ctx - 1),
            mask=mask,
            key_positions=torch.cat([before, positions], dim=-1),
            visible=visible,
        )

    def _layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise DriftlensError(f"layer {layer} is out of range; {self.name} has layers 0 to {self.n_layers - 1}")
        return layer


def _on_block(layer: int, hooks: Iterable[Hook]) -> bool:
    return any(name.startswith(f"blocks.{layer}.") for name, _ in hooks)


def check_loaded(model: object) -> None:
    """Whether a model is what every function of driftlens works on.

    Raises:
        DriftlensError: it is a name, or a model of another library.
    """
    if isinstance(model, str | PathLike):
        raise DriftlensError(f"{str(model)!r} is a model's name; load it first: load_model({str(model)!r})")
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if kinds & {"TransformerBridge", "HookedTransformer"}:
        raise DriftlensError(f"a {type(model).__name__} has to be wrapped first: LensModel(model)")
    if "PreTrainedModel" in kinds:
        raise DriftlensError(f"a {type(model).__name__} cannot be used as it is; give its folder to load_model(folder)")


def _backend_of(model: Any, family: Family | None) -> Backend:
    # By name: no transformer-lens has both classes in a state that can be used.
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if "HookedTransformer" in kinds:
        from driftlens.models.hooked import HookedBackend

        return HookedBackend(model, family)
    # The bridge of 3.x ignores hook names that it does not know.
    if "TransformerBridge" in kinds and not version("transformer-lens").startswith("3."):
        from driftlens.models.bridge import BridgeBackend

        return BridgeBackend(model, family)
    raise DriftlensError(
        f"cannot use a {type(model).__name__}; expected a TransformerBridge (transformer-lens 4.3 or later) "
        f"or an unprocessed HookedTransformer (3.9)"
    )
