"""`python -m instantstyle.emoji.build_vocabulary [FILE]`: writes the table of names people type.

Names in English, German and Japanese, emoji, shortcodes and tags of every thing that emojibase lists, so that what a
model was not taught can be told by its name too.  The file lies in the model's folder;
`encoders.prompt_vocabulary` reads it.
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


def table() -> dict[str, Any]:
    """The file's content; labels in emojibase's order."""
    others = {language: {each["hexcode"]: each for each in entries(language)} for language in _LANGUAGES}
    english, codes = {each["hexcode"]: each for each in entries("en")}, shortcodes()
    said: dict[str, Any] = {}
    for thing in things():
        hexcode = thing.hexcode
        told = [others[language][hexcode] for language in _LANGUAGES if hexcode in others[language]]
        names = (
            *OTHER_WORDS.get(thing.label, ()),
            *(each["label"] for each in told),
            *_spelled(each["label"] for each in told),
            *_coded(codes.get(hexcode, ())),
        )
        tags = [tag for each in (english[hexcode], *told) for tag in each.get("tags", ())]
        known = {normalize_key(name) for name in (thing.label, *names)}
        said[thing.label] = {
            "emoji": thing.emoji,
            "group": lookalike_group(thing),
            "kin": thing.subgroup,
            "names": list(dict.fromkeys(name for name in names if name != thing.label)),
            "tags": list(dict.fromkeys(tag for tag in (*tags, *_spelled(tags)) if normalize_key(tag) not in known)),
        }
    looks = {word for name in (*TRAINED_FAMILIES, *SET_WORDS.values()) for word in name.split()}
    return {
        "about": f"Names people type.  {EMOJIBASE.credit}: {EMOJIBASE.name} {EMOJIBASE.version}, {EMOJIBASE.licence}.",
        "looks": sorted({*looks, *_COLOURS, "style", "on"}),
        "colours": sorted(_COLOURS),
        "things": said,
    }


def _coded(codes: Iterable[str]) -> list[str]:
    """Shortcodes as names, but for such as red_car: that it is red is said of the drawing, not of the thing."""
    names = [code.replace("_", " ") for code in codes]
    return [name for name in names if not _COLOURS & set(name.split())]


def _spelled(words: Iterable[str]) -> list[str]:
    """Words with umlauts as people write them who have none on their keys."""
    without = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})
    return [word.translate(without) for word in words if word.translate(without) != word]


def write(path: Path = TARGET) -> Path:
    """Write the table, a line a thing, so that a change of it can be read."""
    content = table()
    lines = [f"    {_json(label)}: {_json(each)}" for label, each in content.pop("things").items()]
    head = "".join(f"  {_json(name)}: {_json(value)},\n" for name, value in content.items())
    return write_atomic(path, ("{\n" + head + '  "things": {\n' + ",\n".join(lines) + "\n  }\n}\n").encode())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the table into the built-in model's folder, or to a file that is named."""
    try:
        print(write(Path(sys.argv[1])) if len(sys.argv) > 1 else write())
    except (InstantStyleError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
