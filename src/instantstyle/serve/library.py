"""StyleLibrary: the style cards that a studio offers, those that come with the package and those saved in it."""

import threading
from dataclasses import dataclass
from pathlib import Path

from instantstyle.errors import InputError, WeightsError
from instantstyle.request.style_card import SUFFIX as CARD_SUFFIX
from instantstyle.request.style_card import StyleCard, is_card_name, list_style_cards, read_card


@dataclass(frozen=True)
class LibraryEntry:
    """A card, and whether it came with the package."""

    card: StyleCard
    shipped: bool
    path: Path


class StyleLibrary:
    """Cards by name.  A name is looked up among those that are there and never becomes a path by itself."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, LibraryEntry] = {}
        for name, path in list_style_cards(own=False).items():
            self._read(name, path, shipped=True)
        for path in sorted(folder.glob(f"*{CARD_SUFFIX}")):
            self._read(path.name.removesuffix(CARD_SUFFIX), path, shipped=False)

    def _read(self, name: str, path: Path, *, shipped: bool) -> None:
        try:
            self._entries[name] = LibraryEntry(read_card(path), shipped, path)
        except WeightsError:
            return  # a damaged card of the folder is not offered

    def entries(self) -> dict[str, LibraryEntry]:
        """All of them by name, in their order."""
        with self._lock:
            return dict(sorted(self._entries.items()))

    def get(self, name: str) -> LibraryEntry | None:
        """The card of a name."""
        with self._lock:
            return self._entries.get(name)

    def save(self, card: StyleCard) -> LibraryEntry:
        """Keep a card.  Raises InputError when its name is taken by a shipped one, OutputError."""
        if not is_card_name(card.name):
            raise InputError(f"a style cannot be called {card.name!r}: letters, digits, spaces and + - _")
        with self._lock:
            there = self._entries.get(card.name)
            if there is not None and there.shipped:
                raise InputError(f"{card.name!r} comes with instantstyle: give the style another name")
            path = self._folder / f"{card.name}{CARD_SUFFIX}"
            card.save(path)
            entry = self._entries[card.name] = LibraryEntry(card, False, path)
        return entry

    def delete(self, name: str) -> bool:
        """Forget a saved card; whether there was one.  Raises InputError for shipped ones."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return False
            if entry.shipped:
                raise InputError(f"{name!r} comes with instantstyle and stays")
            entry.path.unlink(missing_ok=True)
            del self._entries[name]
        return True
