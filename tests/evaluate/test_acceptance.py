"""Acceptance checks: when one passes, its JSON, and the table in a model's card."""

from pathlib import Path

import pytest

from instantstyle.errors import InputError
from instantstyle.evaluate.acceptance import CARD_MARKERS, Check, acceptance_table, write_into_card

CHECKS = [
    Check("content right", "conv", 0.98, 0.86, 0.73),
    Check("copies", "nearest", 0.1, 0.0, 0.05, higher_is_better=False),
    Check("openmoji", "conv", 0.2, 1.0, 0.09, bound=0.08),
]


def test_lower_is_better_for_copies_and_a_bound_replaces_the_value() -> None:
    assert [check.passed for check in CHECKS] == [True, False, False]


def test_the_table_in_the_card_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"before\n\n{CARD_MARKERS[0]}\nan old table\n{CARD_MARKERS[1]}\n\nafter\n", "utf-8")
    for _ in range(2):
        write_into_card(card, CHECKS)
        text = card.read_text("utf-8")
        assert text.startswith("before\n\n")
        assert text.endswith("\n\nafter\n")
        assert "an old table" not in text
        assert text.count(acceptance_table(CHECKS)) == 1


def test_the_json_has_the_keys_of_files_that_were_written_before() -> None:
    data = CHECKS[1].to_dict()
    assert list(data) == ["what", "judge", "figure", "ceiling", "floor", "more", "note", "bound", "met"]
    assert (data["figure"], data["more"], data["met"]) == (0.1, False, False)


@pytest.mark.parametrize("text", [None, "", CARD_MARKERS[0], f"{CARD_MARKERS[1]} {CARD_MARKERS[0]}"])
def test_a_card_without_markers_is_left_alone(tmp_path: Path, text: str | None) -> None:
    card = tmp_path / "README.md"
    if text is not None:
        card.write_text(text, "utf-8")
    with pytest.raises(InputError, match="no place for the floors"):
        write_into_card(card, CHECKS)
    assert (card.read_text("utf-8") if card.exists() else None) == text
