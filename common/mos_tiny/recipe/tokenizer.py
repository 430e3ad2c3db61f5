"""A CLIP tokenizer with a byte-level BPE learnt from captions: their words are one token each.

    python -m mos_tiny.recipe.tokenizer --data DATA --out RUN/tokenizer

It also learns `PLAIN_WORDS`, so that ordinary prompts are not spelt letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mos_common.errors import StateError
from mos_common.files import write_atomically
from mos_common.shell import run, say
from mos_tiny.recipe.compose import WIDTHS

POSITIONS = 56  # the longest caption of two people, with a margin
VOCABULARY_SIZE = 1500
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # how CLIP cuts a text into words
PLAIN_WORDS = (
    "photo picture of the my your his her new old toy dog's style drawing painting a an in on at under "
    "over with without and or next to left right middle front behind top bottom small big tiny large red "
    "green blue face head hair eyes smile nose mouth ear hand person people boy girl child robot ghost "
    "monster dinosaur alien animal food fruit vehicle thing object logo character cartoon avatar icon "
    "background scene white black light dark color bright day night morning garden street kitchen park "
    "lake river hill space moon sun sky cloud rain wearing holding sitting standing playing running "
    "jumping eating rendering close up good nice beautiful cropped depiction the itself one two three"
)
PLAIN_WORDS_COUNT = 200  # enough repetitions to be merged to whole words


def learn_merges(captions: Sequence[str]) -> list[tuple[str, str]]:
    """Learn the byte-pair merges of the captions, most frequent first."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix=WORD_END))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    bpe.train_from_iterator([*captions, *[PLAIN_WORDS] * PLAIN_WORDS_COUNT], trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return [(left, right) for left, right in pairs]


def vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return token ids in CLIP's order: bytes, bytes at a word's end, merges, start, end."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer(captions: Sequence[str]) -> Any:
    """Build the tokenizer for these captions."""
    from transformers import CLIPTokenizer

    merges = learn_merges(captions)
    # transformers 5 takes the tables themselves; it silently ignores files given as vocab_file
    return CLIPTokenizer(vocab=vocabulary(merges), merges=merges, model_max_length=POSITIONS)


def save_tokenizer(tokenizer: Any, out: Path) -> None:
    """Write the folder, with the `vocab.json` and `merges.txt` that older readers expect."""
    tokenizer.save_pretrained(out)
    model = json.loads((out / "tokenizer.json").read_text())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    ids = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    write_atomically(out / "vocab.json", json.dumps(ids).encode())
    write_atomically(out / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]).encode())


def read_captions(data: Path) -> list[str]:
    """Read all captions of a folder that `mos_tiny.recipe.compose` wrote."""
    try:
        return [caption for width in WIDTHS for caption in json.loads((data / f"train_{width}.json").read_text())]
    except OSError as error:
        raise StateError(
            f"no captions in {data}: run `python -m mos_tiny.recipe.compose --out {data}` first"
        ) from error


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.tokenizer --data build/tiny --out build/tiny/tokenizer")
def tokenizer_command(
    data: Annotated[Path, typer.Option("--data", help="The folder that mos_tiny.recipe.compose wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
) -> None:
    """Learn the vocabulary from the captions."""
    captions = read_captions(data)
    tokenizer = build_tokenizer(captions)
    save_tokenizer(tokenizer, out)
    lengths = sorted(len(tokenizer(caption).input_ids) for caption in captions)
    say(
        f"{len(tokenizer)} tokens; captions have {lengths[len(lengths) // 2]} (median) to "
        f"{lengths[-1]} (at most {POSITIONS})"
    )


if __name__ == "__main__":
    run(app)
