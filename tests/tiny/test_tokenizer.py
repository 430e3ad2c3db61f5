"""The tokenizer that is learnt from captions."""

from __future__ import annotations

import json

from mos_tiny.recipe.tokenizer import POSITIONS, build_tokenizer, save_tokenizer
from mos_tiny.recipe.trainer import token_ids
from mos_tiny.recipe.trials import UNTRAINED


def test_a_tokenizer_knows_each_word_of_its_captions_as_one_token(tmp_path):
    from transformers import CLIPTokenizer

    captions = ["a red car on the beach", "a blue car and a red snowman at night"] * 20
    save_tokenizer(build_tokenizer(captions), tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    words = {word for caption in captions for word in caption.split()}
    assert {len(tokenizer.tokenize(word)) for word in words} == {1}
    assert len(tokenizer.tokenize(UNTRAINED)) > 1
    ids = token_ids(tokenizer, ["a red car"])[0].tolist()
    assert ids[0] == tokenizer.bos_token_id and ids[4] == tokenizer.eos_token_id and len(ids) == POSITIONS
    assert json.loads((tmp_path / "vocab.json").read_text()) == tokenizer.get_vocab()
