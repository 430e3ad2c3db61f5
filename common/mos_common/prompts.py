"""The contexts in which a concept is recorded for fusion, and those in which it is scored.

The two lists share no context: least squares preserves the recorded contexts, so only others show
how well fusion works. `WATCHED` are drawn while a concept is tuned. `V` stands for the concept (or
for its class word, to draw with the untouched base). The words are short and common, so that every
text-to-image model knows them, including `tiny`.
"""

from __future__ import annotations

RECORDED = (
    "photo of a V",
    "V",
    "V on a white background",
    "V on a red background",
    "V on a green background",
    "V on a yellow background",
    "V on a teal background",
    "V on the beach",
    "V in the snow",
    "V at night",
    "V in a meadow",
    "V at sunset",
    "a smiling V in the sea",
    "V on the left and a tree on the right",
    "a house on the left and V on the right",
    "V with glasses",
)
SCORED = (
    "V on a blue background",
    "V in the forest",
    "V on a pink background",
    "V in the city",
    "V on an orange background",
    "V in the desert",
    "V on a purple background",
    "V in a room",
)
ORDINARY = (
    "",
    "a man on a white background",
    "a woman on the beach",
    "a person in the snow",
    "a dog in a meadow",
    "a cat on a red background",
    "a red car in the city",
    "a house at night",
    "a tree in the forest",
    "a blue balloon on a yellow background",
    "a man on the left and a dog on the right",
    "a woman with long hair at sunset",
    "an empty picture in the desert",
    "an apple in a room",
    "a bird at sea",
    "a green book on a pink background",
)
WATCHED = (
    "V on a black background",
    "V at sea",
    "V on the beach",
    "V at night",
)
UNRELATED = (
    "a panda in the forest",
    "a pizza on a blue background",
    "a boat at sea",
    "a woman with short black hair on a purple background",
    "a man with a beard in the desert",
    "a yellow star at night",
    "a person with glasses on a green background",
    "a smiling woman in a room",
    "a man in a meadow",
    "a woman at sea",
    "a rabbit on an orange background",
    "a penguin at sunset",
    "a red mushroom in the snow",
    "a bus in the city",
    "a dog on the left and a tree on the right",
    "an empty picture on the beach",
)


def about(context: str, subject: str) -> str:
    """Replace V in a context: `about("V at night", "<cat>")` is "<cat> at night"."""
    import re

    return re.sub(r"\bV\b", lambda _: subject, context)
