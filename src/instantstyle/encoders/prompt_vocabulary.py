"""Names people type, for a model that was taught a few things by name: "Cat face!", "kitty", "Katze", a cat's emoji.

A model whose folder holds a `names.json` knows its vocabulary and no other thing.  What is typed is settled to the
words it was taught; words for a look stay as they stand; whatever else is typed is told in a sentence, never dropped
unsaid.  A model without such a file reads every prompt as it is.  No torch here.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from instantstyle.errors import WeightsError, closest_match

VOCABULARY_FILE = "names.json"
"""In a model's folder; written by `python -m instantstyle.emoji.build_vocabulary`."""

_ARTICLES = frozenset(("a", "an", "the", "ein", "eine", "einen", "einem", "einer", "der", "die", "das"))
_FILLERS = _ARTICLES | frozenset(
    (
        *("of", "in", "with", "and", "for", "at", "some", "my", "your", "this", "that", "one", "please", "draw", "me"),
        *("picture", "image", "drawing", "emoji", "icon", "background", "ground", "bild", "von", "und", "mit"),
    )
)
"""Words that neither name a thing nor a look; nothing is lost without them."""
_ENDINGS = (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""), ("en", ""), ("n", ""), ("er", ""), ("e", ""))
"""Plural endings of English and German, and what the singular has instead."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_EAST = re.compile("[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f]")
"""Kana and kanji, which are written without spaces."""
_KANJI = re.compile("[\u3400-\u9fff]")
_KATAKANA = {code: code + 0x60 for code in range(0x3041, 0x3097)}


@dataclass(frozen=True)
class Concept:
    """One thing that has an emoji, whether or not a model was taught it."""

    label: str
    emoji: str
    lookalike_group: str
    """Look-alikes share it."""
    category: str
    """A wider circle: `animal-mammal`."""
    names: tuple[str, ...] = ()
    """Other names, the more usual first."""
    tags: tuple[str, ...] = ()
    """Words that say something of it; several things share most of them."""


@dataclass(frozen=True)
class NormalizedPrompt:
    """What a model is to read for what was typed."""

    text: str
    warnings: tuple[str, ...] = ()
    """What of it the model was not taught, a sentence each."""


@dataclass(frozen=True, eq=False)
class PromptVocabulary:
    """All things that have a name, those of them that one model was taught, and the words it was taught for looks."""

    concepts: Sequence[Concept]
    known_labels: frozenset[str]
    """Labels."""
    style_words: frozenset[str]
    """Single words of looks: "neon", "style", "on", "blue"."""
    colours: frozenset[str]
    """Those of them that are colours, which this model knows of grounds alone."""
    _exact_names: Mapping[str, Concept] = field(init=False, repr=False)
    _tags: Mapping[str, tuple[Concept, ...]] = field(init=False, repr=False)
    _emoji: Mapping[str, Concept] = field(init=False, repr=False)
    _lookalikes: Mapping[str, tuple[Concept, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = sorted(self.concepts, key=lambda thing: thing.label not in self.known_labels)
        strong: dict[str, Concept] = {}
        for rank in range(max((len(thing.names) for thing in known), default=0) + 1):
            for thing in known:
                if rank <= len(thing.names):
                    strong.setdefault(normalize_key((thing.label, *thing.names)[rank]), thing)
        # A taught thing's second name goes before an untaught one's first: "pig" is the pig face, where that is known.
        for thing in reversed(known):
            if thing.label in self.known_labels:
                strong |= {
                    normalize_key(name): thing
                    for name in thing.names
                    if strong[normalize_key(name)].label not in self.known_labels
                }
        weak: dict[str, list[Concept]] = {}
        for thing in known:
            if thing.label in self.known_labels:
                for tag in dict.fromkeys(map(normalize_key, thing.tags)):
                    if tag not in self.style_words:
                        weak.setdefault(tag, []).append(thing)
        alike: dict[str, tuple[Concept, ...]] = {}
        for thing in known:
            if thing.label in self.known_labels:
                alike[thing.lookalike_group] = (*alike.get(thing.lookalike_group, ()), thing)
        object.__setattr__(self, "_lookalikes", alike)
        object.__setattr__(self, "_exact_names", strong)
        object.__setattr__(self, "_tags", {tag: tuple(things) for tag, things in weak.items()})
        object.__setattr__(self, "_emoji", {_plain(thing.emoji): thing for thing in self.concepts})

    @classmethod
    def read(cls, path: Path, taught: Iterable[str]) -> "PromptVocabulary":
        """The names in a file, for a model that was taught these labels.  Raises WeightsError."""
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            things = [
                Concept(label, each["emoji"], each["group"], each["kin"], tuple(each["names"]), tuple(each["tags"]))
                for label, each in cast("Mapping[str, Any]", content["things"]).items()
            ]
            return cls(things, frozenset(taught), frozenset(content["looks"]), frozenset(content["colours"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
            raise WeightsError(
                f"the table of names {path} cannot be read ({type(broken).__name__}: {broken}): write it anew with "
                "python -m instantstyle.emoji.build_vocabulary"
            ) from broken

    def normalize(self, typed: str) -> NormalizedPrompt:
        """What the model is to read for a prompt.

        The first thing named is what is drawn; its name becomes the taught one, in its place.  After the thing's
        clause everything stays as typed, and is warned of where it was not taught.  A prompt that names nothing known
        stays whole.
        """
        if not typed.strip():
            return NormalizedPrompt(typed)
        clauses = [clause.strip() for clause in re.split(r"[,;、，]", typed) if clause.strip()]
        found = [self._find(self._tokens(clause)) for clause in clauses]
        subject = next((i for i, each in enumerate(found) if each is not None), None)
        if subject is None:
            return self._unknown(typed, clauses)
        match = found[subject]
        assert match is not None
        said, warnings = self._subject(clauses[subject], *match)
        others = [clause for i, clause in enumerate(clauses) if i != subject]
        warnings += [warning for clause in others for warning in self._look(clause)]
        text = ", ".join(said if i == subject else clause for i, clause in enumerate(clauses))
        return NormalizedPrompt(text, tuple(warnings))

    def _subject(self, clause: str, first: int, last: int, thing: Concept) -> tuple[str, list[str]]:
        """The clause that names the thing, as the model is to read it, and what is to be said of it."""
        tokens = self._tokens(clause)
        typed = "".join(tokens[first:last]) if _EAST.search(tokens[first]) else " ".join(tokens[first:last])
        warnings: list[str] = []
        taught = self._taught(thing)
        if taught is not None and self._tagged(tokens[first:last]):
            warnings.append(f"{typed!r} is read as {taught.label!r}, the nearest thing this model was taught")
        if taught is None:
            warnings.append(self._untaught(typed, thing))
            label = thing.label
        else:
            label = taught.label
            if _strip_face_suffix(taught.label) != _strip_face_suffix(thing.label):
                warnings.append(
                    f"{thing.label!r} is not among the {len(self.known_labels)} things this model was taught: it draws "
                    f"{label!r} instead"
                )
        before, after = tokens[:first], tokens[last:]
        (ahead, lost), (behind, more) = self._kept(before), self._kept(after)
        warnings += [
            f"this model was taught colours of the ground and not of things, so {token!r} is left out; "
            f"', on {token}' is the ground"
            for token in (*lost, *more)
        ]
        for token in (*before, *after):
            if not self._stays(token) and normalize_key(token) not in _FILLERS and self._emoji.get(token) is not thing:
                warnings.append(self._left_out(token))
        if any(normalize_key(token) in _ARTICLES for token in before):
            ahead.insert(0, indefinite_article(ahead[0] if ahead else label).split(" ")[0])
        return " ".join([*ahead, label, *behind]), warnings

    def _stays(self, token: str) -> bool:
        return normalize_key(token) in self.style_words

    def _kept(self, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
        """Words of looks, and colours that are lost because they are said of the thing and not, by "on", of the ground.

        A colour beside the name makes the model draw other things: of five prompts such as "a blue cat" to the first
        built-in model three did.
        """
        kept, lost, on, ground = list[str](), list[str](), "", False
        for token in tokens:
            word = normalize_key(token)
            if word == "on":
                on, ground = token, True
            elif word in self.colours:
                (kept if ground else lost).extend([on, token] if on else [token])
                on = ""
            elif word not in _FILLERS:
                on, ground = "", False
                kept += [token] if self._stays(token) else []
        return kept, lost

    def _taught(self, thing: Concept) -> Concept | None:
        """The thing itself, or one that looks like it and was taught."""
        if thing.label in self.known_labels:
            return thing
        alike = self._lookalikes.get(thing.lookalike_group, ())
        return next(
            (each for each in alike if _strip_face_suffix(each.label) == _strip_face_suffix(thing.label)),
            (*alike, None)[0],
        )

    def _untaught(self, typed: str, thing: Concept) -> str:
        named = typed if normalize_key(typed) == normalize_key(thing.label) else f"{typed} ({thing.label})"
        return (
            f"'{named}' is not among the {len(self.known_labels)} things this model was taught, so it will not be "
            f"drawn rightly{self._nearest_thing(thing)}"
        )

    def _nearest_thing(self, thing: Concept) -> str:
        """The taught thing of the same kind that shares most tags with an untaught one."""
        kin = [
            each
            for each in self.concepts
            if each.label in self.known_labels and each.category.split("-")[0] == _circle(thing)
        ]
        if not kin:
            return ""
        tags = set(thing.tags)
        best = max(kin, key=lambda each: (each.category == thing.category, len(tags & set(each.tags)), -len(each.tags)))
        return f"; nearest known: {best.label!r}"

    def _left_out(self, token: str) -> str:
        if self._named([token]) is not None:
            return f"this model draws one thing a picture: {token!r} is left out"
        near = closest_match(normalize_key(token), [*self.style_words, *self.known_labels], 0.75)
        return f"{token!r} is no word this model was taught{_hint(near)}: it is left out"

    def _look(self, clause: str) -> list[str]:
        """Warnings about a clause that names no thing to be drawn; it stays as it stands."""
        words = [
            token for token in self._tokens(clause) if not self._stays(token) and normalize_key(token) not in _FILLERS
        ]
        return [
            f"{word!r} is no word for a look that this model was taught"
            f"{_hint(closest_match(normalize_key(word), self.style_words, 0.75))}"
            for word in words
        ]

    def _unknown(self, typed: str, clauses: Sequence[str]) -> NormalizedPrompt:
        """A prompt that names nothing known: read as it is, and said so."""
        tokens = self._tokens(clauses[0]) if clauses else []
        words = [token for token in tokens if normalize_key(token) not in _FILLERS]
        if clauses and all(self._stays(token) for clause in clauses for token in self._tokens(clause)):
            return NormalizedPrompt(typed, ("no thing is named, only a look: the model draws what it likes",))
        several = next((things for word in words if len(things := self._by_tag(word)) > 1), ())
        if several:
            said = ", ".join(repr(thing.label) for thing in several[:6])
            return NormalizedPrompt(
                typed, (f"{typed!r} may be several things this model was taught: {said}; say which",)
            )
        near = self._nearest_name(" ".join(words)) or next(filter(None, map(self._nearest_name, words)), None)
        shown = " ".join(words) or typed
        named = f" ({name})" if len(shown) == 1 and (name := unicodedata.name(shown, "").lower()) else ""
        return NormalizedPrompt(
            typed,
            (
                f"'{shown}'{named} is not among the {len(self.known_labels)} things this model was taught"
                f"{_hint(near) or '; a few it was: ' + ', '.join(sorted(self.known_labels)[:5])}",
            ),
        )

    def _nearest_name(self, words: str) -> str | None:
        """The label of the taught thing with a name, or a tag of its own, that is spelled most like the words."""
        own = {tag: things[0] for tag, things in self._tags.items() if len(things) == 1}
        names = {
            name: taught for name, thing in {**own, **self._exact_names}.items() if (taught := self._taught(thing))
        }
        near = closest_match(
            normalize_key(words), [name for name in names if abs(len(name) - len(words)) <= max(2, len(words) // 2)]
        )
        return None if near is None else names[near].label

    def _find(self, tokens: Sequence[str]) -> tuple[int, int, Concept] | None:
        """The longest run of tokens that names a thing, of equally long ones the first; as [first, last) and thing."""
        for length in range(min(len(tokens), 6), 0, -1):
            for first in range(len(tokens) - length + 1):
                if (thing := self._named(tokens[first : first + length])) is not None:
                    return first, first + length, thing
        for i, token in enumerate(tokens):  # "peach" is a colour too, and a fruit where nothing else is meant
            both = self._exact_names.get(normalize_key(token)) if self._stays(token) else None
            if (
                both is not None
                and both.label in self.known_labels
                and all(normalize_key(each) != "on" for each in tokens[:i])
            ):
                return i, i + 1, both
        words = [i for i, token in enumerate(tokens) if normalize_key(token) not in _FILLERS and not self._stays(token)]
        for i in words:  # a tag is a name only where nothing else is said, or in a script without spaces
            things = self._by_tag(tokens[i])
            if len(things) == 1 and (len(words) == 1 or _EAST.search(tokens[i])):
                return i, i + 1, things[0]
        return None

    def _named(self, tokens: Sequence[str]) -> Concept | None:
        whole = normalize_key(" ".join(tokens))
        if len(tokens) == 1:
            if tokens[0] in self._emoji:
                return self._emoji[tokens[0]]
            if whole in self.style_words or whole in _FILLERS:
                return None
            if _EAST.search(whole):
                inside = [name for name in self._exact_names if name in whole and (len(name) > 1 or _KANJI.match(name))]
                named = max(
                    inside,
                    key=lambda name: (self._exact_names[name].label in self.known_labels, len(name)),
                    default=None,
                )
                return None if named is None else self._exact_names[named]
        known = [self._exact_names[name] for name in (whole, *_singulars(whole)) if name in self._exact_names]
        return next((thing for thing in known if thing.label in self.known_labels), (*known, None)[0])

    def _tagged(self, tokens: Sequence[str]) -> bool:
        """Whether the tokens lead to a thing by a tag alone."""
        return self._named(tokens) is None and normalize_key(" ".join(tokens)) not in self._exact_names

    def _by_tag(self, token: str) -> tuple[Concept, ...]:
        whole = normalize_key(token)
        if _EAST.search(whole):
            inside = [tag for tag in self._tags if tag in whole]
            return self._tags[max(inside, key=len)] if inside else ()
        return next((self._tags[name] for name in (whole, *_singulars(whole)) if name in self._tags), ())

    def _tokens(self, text: str) -> list[str]:
        """Words, and emoji each by itself."""
        text, tokens, at = _plain(text), list[str](), 0
        while at < len(text):
            sign = next((text[at : at + n] for n in range(8, 0, -1) if text[at : at + n] in self._emoji), None)
            if sign is None and unicodedata.category(text[at]) == "So":
                sign = text[at]
            word = None if sign is not None else _WORD.match(text, at)
            if sign is not None or word is not None:
                tokens.append(sign or cast("re.Match[str]", word).group())
            at += len(tokens[-1]) if sign is not None or word is not None else 1
        return tokens


def normalize_key(text: str) -> str:
    """A name as it is looked up: without case, punctuation, width or hyphens, hiragana as katakana."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_KATAKANA)
    return " ".join(re.findall(r"[^\W_]+", folded))


def indefinite_article(noun: str) -> str:
    """`a cat`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plain(text: str) -> str:
    """Without variation selectors and skin tones."""
    return re.sub("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]", "", text)


def _singulars(name: str) -> list[str]:
    ends = [name.removesuffix(ending) + instead for ending, instead in _ENDINGS if name.endswith(ending)]
    return [single for single in ends if len(single) > 2]


def _strip_face_suffix(label: str) -> str:
    return label.removesuffix(" face")


def _circle(thing: Concept) -> str:
    return thing.category.split("-")[0]


def _hint(near: str | None) -> str:
    return "" if near is None else f"; nearest known: {near!r}"
