"""Pieces of sentences."""

import pytest

from compressor.text import count_of


@pytest.mark.parametrize(
    ("count", "verb", "words"),
    [(1, "", "1 image"), (0, "", "0 images"), (1, "was", "1 image was"), (2, "was", "2 images were")],
)
def test_nouns_and_verbs_follow_their_number(count: int, verb: str, words: str) -> None:
    assert count_of(count, "image", verb) == words
