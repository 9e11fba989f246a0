"""The bundled model's tokenizer: byte-level BPE of 2,048 tokens, learnt from worlds of other seeds.

Their names follow the same pattern but are other ones, so the merges are words and syllables, and the names
of the world at hand stay two to four tokens long, as names are for large models. A leading space is always
added: a name has one spelling wherever it stands.
"""

from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from driftlens.demo.documents import corpus
from driftlens.demo.world import build_world

VOCABULARY = 2048
CONTEXT = 128
END_OF_TEXT = "<|endoftext|>"
SIBLING_WORLDS = 100
DOCUMENTS_PER_WORLD = 160


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """The tokenizer of this seed's world."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sibling_documents(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        add_prefix_space=True,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def _sibling_documents(seed: int) -> Iterator[str]:
    for sibling in range(1, SIBLING_WORLDS + 1):
        world = build_world(seed + 1_000_000 * sibling)
        yield from islice(corpus(world), DOCUMENTS_PER_WORLD)
