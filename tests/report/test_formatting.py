"""Numbers in words: bytes, counts, ratios, shares, durations."""

import pytest

from compressor.report import formatting


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.045, "22× smaller"), (0.286, "3.5× smaller"), (1.2, "1.2× larger"), (1.0, "the same")]
)
def test_sizes_and_times_change_in_the_same_form(ratio: float, words: str) -> None:
    assert formatting.format_factor(ratio, "smaller", "larger") == words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(46_800_123, "46.8 MB"), (9_093_500, "9.1 MB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (12, "12 B")],
)
def test_bytes(value: int, shown: str) -> None:
    assert formatting.format_bytes(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (512, "512"),
        (1000, "1.00 k"),
        (999_950, "1.00 M"),
        (11_689_512, "11.7 M"),
        (1.8e9, "1.80 G"),
    ],
)
def test_counts(value: float, shown: str) -> None:
    assert formatting.format_count(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1943, "0.19×"),
        (0.064, "0.064×"),
        (0.0064, "0.0064×"),
        (0.999, "1.0×"),
        (2.13, "2.1×"),
        (12.3, "12×"),
    ],
)
def test_ratios(value: float, shown: str) -> None:
    assert formatting.format_ratio(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.984, "98.4 %"), (1, "100 %"), (0.9999, "more than 99.9 %"), (0, "0 %"), (0.0001, "less than 0.1 %")],
)
def test_percent(value: float, shown: str) -> None:
    assert formatting.format_percent(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(("value", "shown"), [(4.16, "4.2 s"), (42, "42 s"), (192, "3 min 12 s"), (7500, "2 h 05 min")])
def test_durations(value: float, shown: str) -> None:
    assert formatting.format_duration(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(("value", "shown"), [(0, "less than 0.0001"), (0.0031, "0.0031"), (0.5, "0.50"), (1, "1.00")])
def test_probabilities(value: float, shown: str) -> None:
    assert formatting.format_probability(value) == shown
