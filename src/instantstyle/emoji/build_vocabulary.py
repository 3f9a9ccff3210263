"""`python -m instantstyle.emoji.build_vocabulary [FILE]`: writes the vocabulary of prompts.

Names in English, German and Japanese, emoji, shortcodes and tags of every concept that emojibase lists, so that
concepts a model was not trained on are recognised too.  The file is in the model's folder and read by
`encoders.prompt_vocabulary`.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instantstyle.emoji.captions import COLOUR_NAMES, OTHER_WORDS, SET_WORDS
from instantstyle.emoji.sources import EMOJIBASE, entries, shortcodes, things
from instantstyle.emoji.splits import lookalike_group
from instantstyle.emoji.style_transforms import TRAINED_FAMILIES
from instantstyle.encoders.prompt_vocabulary import VOCABULARY_FILE, normalize_key
from instantstyle.errors import InstantStyleError
from instantstyle.utils.atomic_files import write_atomic

TARGET = Path(__file__).resolve().parent.parent / "assets" / "emoji" / VOCABULARY_FILE
_LANGUAGES = ("de", "ja")
_COLOURS = {word for name in COLOUR_NAMES for word in name.split()}


def vocabulary_table() -> dict[str, Any]:
    """The file's content, concepts in emojibase's order."""
    others = {language: {each["hexcode"]: each for each in entries(language)} for language in _LANGUAGES}
    english, codes = {each["hexcode"]: each for each in entries("en")}, shortcodes()
    table: dict[str, Any] = {}
    for concept in things():
        hexcode = concept.hexcode
        translations = [others[language][hexcode] for language in _LANGUAGES if hexcode in others[language]]
        names = (
            *OTHER_WORDS.get(concept.label, ()),
            *(each["label"] for each in translations),
            *_without_umlauts(each["label"] for each in translations),
            *_shortcode_names(codes.get(hexcode, ())),
        )
        tags = [tag for each in (english[hexcode], *translations) for tag in each.get("tags", ())]
        known = {normalize_key(name) for name in (concept.label, *names)}
        table[concept.label] = {
            "emoji": concept.emoji,
            "group": lookalike_group(concept),
            "kin": concept.subgroup,
            "names": list(dict.fromkeys(name for name in names if name != concept.label)),
            "tags": list(
                dict.fromkeys(tag for tag in (*tags, *_without_umlauts(tags)) if normalize_key(tag) not in known)
            ),
        }
    looks = {word for name in (*TRAINED_FAMILIES, *SET_WORDS.values()) for word in name.split()}
    return {
        "about": f"Names people type.  {EMOJIBASE.credit}: {EMOJIBASE.name} {EMOJIBASE.version}, {EMOJIBASE.licence}.",
        "looks": sorted({*looks, *_COLOURS, "style", "on"}),
        "colours": sorted(_COLOURS),
        "things": table,
    }


def _shortcode_names(codes: Iterable[str]) -> list[str]:
    """Shortcodes as names, except those with a colour, such as red_car: it describes the drawing, not the concept."""
    names = [code.replace("_", " ") for code in codes]
    return [name for name in names if not _COLOURS & set(name.split())]


def _without_umlauts(words: Iterable[str]) -> list[str]:
    """The words that have umlauts, transliterated for keyboards without them."""
    transliteration = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})
    return [word.translate(transliteration) for word in words if word.translate(transliteration) != word]


def write_vocabulary(path: Path = TARGET) -> Path:
    """Write the table with a line a concept, so that its diffs are legible."""
    content = vocabulary_table()
    lines = [f"    {_json(label)}: {_json(each)}" for label, each in content.pop("things").items()]
    head = "".join(f"  {_json(name)}: {_json(value)},\n" for name, value in content.items())
    return write_atomic(path, ("{\n" + head + '  "things": {\n' + ",\n".join(lines) + "\n  }\n}\n").encode())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the vocabulary into the built-in model's folder, or to the given file."""
    try:
        print(write_vocabulary(*map(Path, sys.argv[1:2])))
    except (InstantStyleError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
