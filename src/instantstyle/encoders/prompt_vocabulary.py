"""Prompts for a model with a closed vocabulary: "Cat face!", "kitty", "Katze" and a cat's emoji are all "cat".

A model folder with a `names.json` knows the concepts and style words listed there and nothing else.  `normalize` maps a
prompt to those words and warns, a sentence each, about every word that the model does not know.  Names, tags and
categories are data (emojibase's), spelling mistakes are matched by difflib.  Models without such a file read every
prompt as it is.  No torch here.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from instantstyle.errors import WeightsError, closest_match

VOCABULARY_FILE = "names.json"
"""In a model's folder; written by `python -m instantstyle.emoji.build_vocabulary`."""

_WORDS = json.loads((Path(__file__).parent.parent / "assets" / "prompt_words.json").read_text(encoding="utf-8"))
_ARTICLES = frozenset[str](_WORDS["articles"])
_FILLERS = _ARTICLES | frozenset[str](_WORDS["fillers"])
"""Words that name neither a concept nor a style; nothing is lost without them."""
_PLURALS: list[tuple[str, str]] = _WORDS["plural_endings"]
"""Endings of English and German, and what the singular has instead."""
_WORD = r"[^\W_]+(?:['’-][^\W_]+)*"
_SYMBOL = "[\u2190-\u2bff\U0001f000-\U0001ffff]"
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f]")
"""Kana and kanji, which are written without spaces."""
_LONE_KANA = re.compile("[\u3040-\u30ff\uff66-\uff9f]$")
_KATAKANA = {code: code + 0x60 for code in range(0x3041, 0x3097)}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Concept:
    """One thing that has an emoji, whether or not a model knows it."""

    label: str
    emoji: str
    lookalike_group: str
    """Concepts whose drawings look alike share it."""
    category: str
    """Such as `animal-mammal`."""
    names: tuple[str, ...] = ()
    """Other names, the most usual first."""
    tags: tuple[str, ...] = ()
    """Words associated with it; several concepts share most of them."""


@dataclass(frozen=True)
class NormalizedPrompt:
    """The prompt that a model is to read for the one that was typed, and a warning for each word it does not know."""

    text: str
    warnings: tuple[str, ...] = ()


class _Match(NamedTuple):
    """Tokens [start, end) of a clause that name a concept; by one of its tags alone, or by a name."""

    start: int
    end: int
    concept: Concept
    by_tag: bool = False


@dataclass(frozen=True, eq=False)
class PromptVocabulary:
    """All concepts that have a name, the labels of those that one model knows, and its style words."""

    concepts: Sequence[Concept]
    known_labels: frozenset[str]
    style_words: frozenset[str]
    """Single words: "neon", "style", "on", "blue"."""
    colours: frozenset[str]
    """Those style words that are colours, which this model knows of backgrounds alone."""

    @classmethod
    def read(cls, path: Path, known_labels: Iterable[str]) -> "PromptVocabulary":
        """The vocabulary in a file, for a model that was trained on these labels.  Raises WeightsError."""
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            concepts = [
                Concept(label, each["emoji"], each["group"], each["kin"], tuple(each["names"]), tuple(each["tags"]))
                for label, each in cast("Mapping[str, Any]", content["things"]).items()
            ]
            return cls(concepts, frozenset(known_labels), frozenset(content["looks"]), frozenset(content["colours"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
            raise WeightsError(
                f"the table of names {path} cannot be read ({type(broken).__name__}: {broken}): write it anew with "
                "python -m instantstyle.emoji.build_vocabulary"
            ) from broken

    def normalize(self, prompt: str) -> NormalizedPrompt:
        """The first concept that is named is drawn, under its label; the other clauses stay as typed.

        A prompt that names no concept stays whole.
        """
        clauses = [clause.strip() for clause in re.split(r"[,;、，]", prompt) if clause.strip()]
        tokens = [self._tokenize(clause) for clause in clauses]
        matches = [(i, match) for i in range(len(clauses)) if (match := self._find(tokens[i])) is not None]
        if not matches:
            return NormalizedPrompt(prompt, (self._unknown(prompt, tokens),) if prompt.strip() else ())
        subject, match = matches[0]
        clauses[subject], warnings = self._normalize_subject(tokens[subject], match)
        unknown = [word for i, words in enumerate(tokens) if i != subject for word in self._content_words(words)]
        warnings += [f"{word!r} is no word for a look that this model was taught{self._near(word)}" for word in unknown]
        return NormalizedPrompt(", ".join(clauses), tuple(warnings))

    def _normalize_subject(self, tokens: Sequence[str], match: _Match) -> tuple[str, list[str]]:
        """The clause that names the concept, with the label in place of the name and without unknown words.

        Colours are kept behind "on" alone.  Beside the name they make the model draw other things: of five prompts
        such as "a blue cat" to the first built-in model three did.
        """
        typed, concept, count = " ".join(tokens[match.start : match.end]), match.concept, len(self.known_labels)
        drawn = self._stand_ins.get(concept.label)
        label, warnings = (drawn or concept).label, list[str]()
        if drawn is None:
            named = typed if normalize_key(typed) == normalize_key(label) else f"{typed} ({label})"
            warnings.append(
                f"'{named}' is not among the {count} things this model was taught, so it will not be drawn rightly"
                f"{_nearest(self._related(concept))}"
            )
        elif match.by_tag:
            warnings.append(f"{typed!r} is read as {label!r}, the nearest thing this model was taught")
        elif _stem(drawn) != _stem(concept):
            warnings.append(
                f"{concept.label!r} is not among the {count} things this model was taught: it draws {label!r} instead"
            )
        parts = list[list[str]]()
        for words in (tokens[: match.start], tokens[match.end :]):
            kept, background = list[str](), False
            for word in words:
                key = normalize_key(word)
                background = key == "on" or (background and key in self.colours | _FILLERS)
                if key in self.colours and not background:
                    warnings.append(
                        f"this model was taught colours of the ground and not of things, so {word!r} is left out; "
                        f"', on {word}' is the ground"
                    )
                elif key in self.style_words:
                    kept.append(word)
                elif key not in _FILLERS and self._emoji.get(word) is not concept:
                    warnings.append(self._left_out(word))
            following = [*map(normalize_key, kept[1:]), ""]
            parts.append([w for w, after in zip(kept, following, strict=False) if w != "on" or after in self.colours])
        if any(normalize_key(word) in _ARTICLES for word in tokens[: match.start]):
            parts[0].insert(0, indefinite_article([*parts[0], label][0]).split(" ")[0])
        return " ".join([*parts[0], label, *parts[1]]), warnings

    def _left_out(self, word: str) -> str:
        if self._named([word]) is not None:
            return f"this model draws one thing a picture: {word!r} is left out"
        return f"{word!r} is no word this model was taught{self._near(word, self.known_labels)}: it is left out"

    def _unknown(self, prompt: str, tokens: Sequence[Sequence[str]]) -> str:
        """The warning about a prompt that names no known concept."""
        if tokens and all(normalize_key(word) in self.style_words for words in tokens for word in words):
            return "no thing is named, only a look: the model draws what it likes"
        words = [word for word in tokens[0] if normalize_key(word) not in _FILLERS] if tokens else []
        for word in words:
            if len(several := self._tagged(word)) > 1:
                labels = ", ".join(repr(concept.label) for concept in several[:6])
                return f"{prompt!r} may be several things this model was taught: {labels}; say which"
        near = next(filter(None, map(self._similarly_spelt, [" ".join(words), *words])), None)
        shown = " ".join(words) or prompt
        named = f" ({name})" if len(shown) == 1 and (name := unicodedata.name(shown, "").lower()) else ""
        examples = f"; a few it was: {', '.join(sorted(self.known_labels)[:5])}"
        return (
            f"'{shown}'{named} is not among the {len(self.known_labels)} things this model was taught"
            f"{_nearest(near) or examples}"
        )

    def _find(self, tokens: Sequence[str]) -> _Match | None:
        """The longest run of tokens that names a concept, the first of equally long ones.

        Else a style word that is a concept too ("peach") where no background is meant; else a tag, where nothing else
        is said or the script has no spaces.
        """
        for length in range(min(len(tokens), 6), 0, -1):
            for start in range(len(tokens) - length + 1):
                if (concept := self._named(tokens[start : start + length])) is not None:
                    return _Match(start, start + length, concept)
        keys = [normalize_key(token) for token in tokens]
        for i, key in enumerate(keys[: keys.index("on")] if "on" in keys else keys):
            if key in self.style_words and (concept := self._names.get(key)) and concept.label in self.known_labels:
                return _Match(i, i + 1, concept)
        alone = len(self._content_words(tokens)) == 1
        for i, token in enumerate(tokens):
            tagged = self._tagged(token) if keys[i] not in self._silent and (alone or _UNSPACED.search(token)) else ()
            if len(tagged) == 1:
                return _Match(i, i + 1, tagged[0], by_tag=True)
        return None

    def _named(self, tokens: Sequence[str]) -> Concept | None:
        """The concept that these tokens together are a name of, a known one before others."""
        key = normalize_key(" ".join(tokens))
        if len(tokens) == 1 and (tokens[0] in self._emoji or key in self._silent):
            return self._emoji.get(tokens[0])
        candidates = list(_look_up(self._names, key, unspaced=len(tokens) == 1))
        return next((concept for concept in candidates if concept.label in self.known_labels), (*candidates, None)[0])

    def _tagged(self, token: str) -> Sequence[Concept]:
        return next(_look_up(self._tags, normalize_key(token)), ())

    def _related(self, concept: Concept) -> str | None:
        """The label of the known concept of the same kind that shares most tags with an unknown one."""
        circle, tags = concept.category.split("-")[0], set(concept.tags)
        related = (each for each in self._known if each.category.split("-")[0] == circle)
        rank = {e.label: (e.category == concept.category, len(tags & set(e.tags)), -len(e.tags)) for e in related}
        return max(rank, key=rank.__getitem__, default=None)

    def _similarly_spelt(self, words: str) -> str | None:
        """The label of the known concept with the name spelt most like the words."""
        near = closest_match(
            normalize_key(words),
            [name for name in self._spellings if abs(len(name) - len(words)) <= max(2, len(words) // 2)],
        )
        return None if near is None else self._spellings[near]

    def _near(self, word: str, others: Iterable[str] = ()) -> str:
        return _nearest(closest_match(normalize_key(word), [*self.style_words, *others], 0.75))

    def _content_words(self, tokens: Iterable[str]) -> list[str]:
        """The tokens that are neither fillers nor style words."""
        return [token for token in tokens if normalize_key(token) not in self._silent]

    def _tokenize(self, text: str) -> list[str]:
        """Words, and emoji and other symbols each by itself."""
        return self._token.findall(_without_variants(text))

    @cached_property
    def _token(self) -> re.Pattern[str]:
        emoji = sorted(map(re.escape, self._emoji), key=len, reverse=True)
        return re.compile("|".join([*emoji, _WORD, _SYMBOL]))

    @cached_property
    def _silent(self) -> frozenset[str]:
        """Words that need no concept."""
        return _FILLERS | self.style_words

    @cached_property
    def _known(self) -> list[Concept]:
        return [concept for concept in self.concepts if concept.label in self.known_labels]

    @cached_property
    def _emoji(self) -> dict[str, Concept]:
        return {_without_variants(concept.emoji): concept for concept in self.concepts}

    @cached_property
    def _names(self) -> dict[str, Concept]:
        """Concepts by the keys of their names; a known one before others, then by how usual the name is."""
        named = [
            (concept.label in self.known_labels, -rank, normalize_key(name), concept)
            for concept in reversed(self.concepts)
            for rank, name in enumerate((concept.label, *concept.names))
        ]
        return {key: concept for *_, key, concept in sorted(named, key=lambda each: each[:2])}

    @cached_property
    def _tags(self) -> dict[str, list[Concept]]:
        """Known concepts by the keys of their tags."""
        tags = defaultdict[str, list[Concept]](list)
        for concept in self._known:
            for key in {normalize_key(tag) for tag in concept.tags} - self.style_words:
                tags[key].append(concept)
        return dict(tags)

    @cached_property
    def _stand_ins(self) -> dict[str, Concept]:
        """By label, the known concept that is drawn for one: itself, or one that looks like it."""
        alike = defaultdict[str, list[Concept]](list)
        for concept in self._known:
            alike[concept.lookalike_group].append(concept)
        return {
            concept.label: min(group, key=lambda each: (each is not concept, _stem(each) != _stem(concept)))
            for concept in self.concepts
            if (group := alike[concept.lookalike_group])
        }

    @cached_property
    def _spellings(self) -> dict[str, str]:
        """Labels of known concepts by every name, and by tags that one alone has."""
        own = {tag: several[0] for tag, several in self._tags.items() if len(several) == 1} | self._names
        return {name: drawn.label for name, each in own.items() if (drawn := self._stand_ins.get(each.label))}


def normalize_key(text: str) -> str:
    """A name as it is looked up: without case, punctuation, width or hyphens, hiragana as katakana."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_KATAKANA)
    return " ".join(re.findall(r"[^\W_]+", folded))


def indefinite_article(noun: str) -> str:
    """`a cat`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _look_up(table: Mapping[str, _T], key: str, unspaced: bool = True) -> Iterator[_T]:
    """Entries for a key, else for its singulars, or in scripts without spaces for the longest keys inside it."""
    singulars = [key.removesuffix(end) + instead for end, instead in _PLURALS if key.endswith(end)]
    candidates = [key, *(each for each in singulars if len(each) > 2)]
    if unspaced and _UNSPACED.search(key):
        inside = (each for each in table if each in key and not _LONE_KANA.match(each))
        candidates = sorted(inside, key=len, reverse=True)
    return (table[each] for each in candidates if each in table)


def _without_variants(text: str) -> str:
    """Without variation selectors and skin tones."""
    return re.sub("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]", "", text)


def _stem(concept: Concept) -> str:
    return concept.label.removesuffix(" face")


def _nearest(label: str | None) -> str:
    return "" if label is None else f"; nearest known: {label!r}"
