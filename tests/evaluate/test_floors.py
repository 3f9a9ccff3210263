"""The floors: when a row is met, and the table in a model's card."""

from pathlib import Path

import pytest

from instantstyle.errors import InputError
from instantstyle.evaluate.acceptance import CARD_MARKERS, Check, acceptance_table, into_card

ROWS = [
    Check("content right", "conv", 0.98, 0.86, 0.73),
    Check("copies", "nearest", 0.1, 0.0, 0.05, higher_is_better=False),
    Check("openmoji", "conv", 0.2, 1.0, 0.09, bound=0.08),
]


def test_less_is_better_of_copies_and_a_bound_stands_for_its_figure() -> None:
    assert [row.passed for row in ROWS] == [True, False, False]


def test_the_cards_table_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"before\n\n{CARD_MARKERS[0]}\nan old table\n{CARD_MARKERS[1]}\n\nafter\n", "utf-8")
    for _ in range(2):
        into_card(card, ROWS)
        text = card.read_text("utf-8")
        assert text.startswith("before\n\n")
        assert text.endswith("\n\nafter\n")
        assert "an old table" not in text
        assert text.count(acceptance_table(ROWS)) == 1


@pytest.mark.parametrize("text", [None, "", CARD_MARKERS[0], f"{CARD_MARKERS[1]} {CARD_MARKERS[0]}"])
def test_a_card_without_marks_is_left_alone(tmp_path: Path, text: str | None) -> None:
    card = tmp_path / "README.md"
    if text is not None:
        card.write_text(text, "utf-8")
    with pytest.raises(InputError, match="no place for the floors"):
        into_card(card, ROWS)
    assert (card.read_text("utf-8") if card.exists() else None) == text
