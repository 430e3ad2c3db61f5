"""The mark that stands for the concept in captions, and the letters that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mos_client.pictures.marks import ANY_MARK, Marks, texts_around
from mos_common.errors import PicturesError, RequestError

CAT = Marks("<cat>")


def read(line: str, marks: Marks = CAT) -> str:
    """Return the tuned prompt, with ■ for the concept."""
    return "■".join(texts_around(marks.internal(line)))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("V asleep", "■ asleep"),
        ("photo of a V", "photo of a ■"),
        ("A V on a chair", "A ■ on a chair"),
        ("With V", "With ■"),
        ("The cat sits. V wakes", "The cat sits. ■ wakes"),
        ("V's hat", "■'s hat"),
        ("V’s hat", "■’s hat"),
        ("(V), 'V', \"V\": V/V.", "(■), '■', \"■\": ■/■."),
        ("V—asleep, V -- awake", "■—asleep, ■ -- awake"),
        ("- V on a chair", "- ■ on a chair"),
        ("Vが椅子に", "■が椅子に"),
        ("椅子のV", "椅子の■"),
        ("a\u00a0V", "a\u00a0■"),
        ("(V:1.3)", "(■:1.3)"),
        ("TOK on a chair", "■ on a chair"),
        ("Happy TOK on a chair", "Happy ■ on a chair"),
        ("<TOK> on a chair", "■ on a chair"),
        ("<tok>, <V>", "■, ■"),
        ("<cat> on a chair", "■ on a chair"),
        ("<Cat> on a chair", "■ on a chair"),
        ("<cat>-like, two <cat>s", "■-like, two ■s"),
    ],
)
def test_a_mark_that_is_a_word_of_its_own_is_the_concept(line, says):
    assert read(line) == says


@pytest.mark.parametrize(
    "line",
    [
        "a woman in a V-neck sweater",
        "a V\u2011neck, a V\u2010neck, a V\u2013neck",
        "hanging V- and U-shapes",
        "an X-V diagram",
        "Henry V on a horse",
        "King Henry V's crown",
        "Louis\u00a0V",
        "V’all and V'ger and O'V",
        "asleep on a TV",
        "Victor and Venus",
        "a 12 V battery, 1.5 V",
        "V.I.P. area, an R.V.",
        "the V&A",
        "V_1 and V2",
        "TOKYO and TOKs and un-TOK",
        "<b>a cat</b>",
        "<dog> beside <hat>",
        "a cat, tok, v",
        r"a neon \V sign",
    ],
)
def test_what_is_no_mark_stays_text_and_the_concept_is_put_in_front(line):
    assert read(line) == "■, " + line.replace(r"\V", "V")


def test_marks_and_letters_beside_each_other_are_told_apart():
    assert read("V in a V-neck, like Henry V, beside V") == "■ in a V-neck, like Henry V, beside ■"
    assert read(r"V and a neon \V") == "■ and a neon V"


def test_ordinary_captions_are_inside_the_program_as_they_were_written():
    """So that nothing that was tuned on them is tuned again."""
    for line in ("V asleep", "V's hat", "photo of a V, sitting, indoors"):
        assert CAT.internal(line) == ANY_MARK.internal(line) == line
    assert ANY_MARK.internal("cat, sitting") == "V, cat, sitting"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sks asleep", "■ asleep"),
        ("<sks> asleep", "■ asleep"),
        ("Cute sks plays a V, TOK", "Cute ■ plays a V, TOK"),
        ("sks's hat", "■'s hat"),
        ("sks-like masks", "■, sks-like masks"),
        ("V asleep", "■, V asleep"),
        ("a TV, <V>, V-neck and sks", "a TV, <V>, V-neck and ■"),
    ],
)
def test_a_mark_that_is_given_is_the_only_one(line, says):
    assert read(line, Marks("<cat>", "sks")) == says


def test_a_mark_may_be_several_words_or_tags_or_a_letter():
    assert read("photo of ohwx man, V", Marks(None, "ohwx man")) == "photo of ■, V"
    assert read("a <s0><s1> V", Marks(None, "<s0><s1>")) == "a ■ V"
    assert read("X and Malcolm X and X-ray", Marks(None, "X")) == "■ and Malcolm X and X-ray"
    assert read("Käthe sitzt", Marks(None, "Ka\u0308the")) == "■ sitzt"


@given(st.text(alphabet="V TOKsk-'’.,<>\\a1cat", max_size=30), st.sampled_from([None, "sks", "V"]))
def test_no_letter_of_a_caption_is_lost(line, mark):
    """Marks aside, the texts are those that were written; and reading again changes nothing."""
    marks = Marks("<cat>", mark)
    spans = marks.places(line)
    written, done = [], 0
    for start, end, _ in spans:
        written.append(line[done:start])
        done = end
    written.append(line[done:])
    expected = [text.replace(r"\V", "V") for text in written]
    inside = marks.internal(line)
    assert texts_around(inside) == (expected if spans else ["", f", {expected[0]}"])
    assert "■".join(texts_around(Marks(mark="V").internal(inside))) == "■".join(texts_around(inside))


@pytest.mark.parametrize("mark", ["", " sks", "a,b", "--", "\n", "’"])
def test_what_cannot_be_a_mark_is_refused(mark):
    with pytest.raises(RequestError, match=r"--mark .*such as sks"):
        Marks("<cat>", mark)


def test_two_marks_in_a_folder_are_a_question_that_names_both_with_their_files():
    captions = {"00.txt": ["V asleep"], "01.txt": ["TOK on a chair"], "02.txt": ["a cat"]}
    with pytest.raises(PicturesError, match=r"in 2 ways \(V in 00\.txt, TOK in 01\.txt\).*--mark"):
        ANY_MARK.check(captions)
    with pytest.raises(PicturesError, match=r"2 ways \(V in 00\.txt, <cat> in 00\.txt\)"):
        CAT.check({"00.txt": ["V beside <Cat>"]})
    Marks("<cat>", "V").check(captions)


def test_letters_that_are_no_marks_are_no_second_mark():
    CAT.check({"00.txt": ["TOK in a V-neck"], "01.txt": ["TOK as Henry V", "<b>TOK</b>"]})
    ANY_MARK.check({})


def test_a_mark_that_no_caption_has_is_said():
    with pytest.raises(PicturesError, match="--mark skz: none of the 1 captioned pictures"):
        Marks("<cat>", "skz").check({"00.txt": ["sks asleep"]})
    with pytest.raises(PicturesError, match="none of the 0 captioned pictures"):
        Marks("<cat>", "sks").check({})


def test_the_concept_s_own_name_beside_a_given_mark_is_a_question():
    with pytest.raises(PicturesError, match=r"sks, given with --mark, and <cat> in 01\.txt"):
        Marks("<cat>", "sks").check({"00.txt": ["sks asleep"], "01.txt": ["<Cat> awake"]})
    Marks("<cat>", "<cat>").check({"00.txt": ["<cat> asleep"]})
