"""What a model sees and reads of what is given: pictures or style cards of its encoder, prompts as it was taught."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from instantstyle.encoders.prompt_vocabulary import FILE, Names, Understood
from instantstyle.errors import InputError
from instantstyle.model import Model
from instantstyle.request import Picture, PictureLike, Request, remember
from instantstyle.request.style_card import THUMBNAIL_SIDE, Sight, StyleCard, probe_picture
from instantstyle.utils import images as pictures
from instantstyle.utils.images import Fit
from instantstyle.weights.adapter import Adapter
from instantstyle.weights.style_card import fitting, sight

_NAMES: WeakKeyDictionary[Model, Names | None] = WeakKeyDictionary()
_PROBES: WeakKeyDictionary[Model, dict[int, Tensor]] = WeakKeyDictionary()


def names(model: Model) -> Names | None:
    """The names of things that a model was taught, None for one that reads whatever is typed."""
    if model not in _NAMES:
        path = model.found.folder / FILE
        _NAMES[model] = Names.read(path, model.vocabulary) if path.is_file() and model.vocabulary else None
    return _NAMES[model]


def understand(model: Model, typed: str) -> Understood:
    """What a model is to read for what was typed: for all but models taught a few things by name, the same."""
    known = names(model)
    return Understood(typed) if known is None else known.understand(typed)


def look(
    model: Model, images: Sequence[Picture | StyleCard], fit: Fit = "squash", adapter: Adapter | None = None
) -> Tensor:
    """What an adapter reads of each reference: embeddings [n, dim], or for Plus hidden states [n, sequence, width].

    Of a card it is the mean over its pictures.  Raises WeightsError when a card was made for another encoder,
    InputError when there is no image encoder.
    """
    hidden = adapter is not None and adapter.plus
    shown = [image.open() for image in images if isinstance(image, Picture)]
    see = model.see_hidden if hidden else model.see
    rows = see(shown, fit, adapter) if shown else torch.empty(0)
    seen = (rows[i : i + 1] for i in range(len(shown)))
    probe = _probe(model, adapter) if len(shown) < len(images) else None

    def each(image: Picture | StyleCard) -> Tensor:
        if isinstance(image, Picture):
            return next(seen)
        assert probe is not None
        return fitting(image, probe, hidden=hidden).mean(0, keepdim=True).to(model.device, model.dtype)

    return torch.cat([each(image) for image in images])


def make_card(
    model: Model,
    name: str,
    of: Sequence[PictureLike],
    *,
    content: str | Sequence[str] | None = None,
    plan: str | None = None,
    licence: str = "",
    credit: str = "",
    fit: Fit = "squash",
) -> StyleCard:
    """A style card of pictures for a model's image encoder.

    Raises InputError when there is no picture or no image encoder, PictureError when a picture cannot be read.
    """
    if not of:
        raise InputError("a style card is made of at least one picture, and none is given")
    shown = [remember(each).open() for each in of]
    small = [pictures.png(each, longest=THUMBNAIL_SIDE) for each in shown]
    return StyleCard(name, [_sight(model, shown, fit)], small, content, plan, licence, credit)


def re_embedded(model: Model, card: StyleCard, fit: Fit = "squash") -> StyleCard:
    """A card with what this model's encoder sees of the card's own pictures, in place of what it may have held of it.

    Raises InputError when the card carries no picture.
    """
    anew = _sight(model, card.pictures(), fit)
    others = [each for each in card.sights if each.probe != anew.probe]
    return card.model_copy(update={"sights": (anew, *others)})


def look_anew(model: Model, request: Request) -> Request:
    """A request whose style cards hold what this model's encoder sees of their pictures."""
    images = [each.image for each in request.references]
    anew = [re_embedded(model, image, request.fit) if isinstance(image, StyleCard) else image for image in images]
    pairs = zip(request.references, anew, strict=True)
    return request.model_copy(update={"references": tuple(r.model_copy(update={"image": i}) for r, i in pairs)})


def _sight(model: Model, shown: Sequence[Image.Image], fit: Fit) -> Sight:
    plus = model.adapter is not None and model.adapter.plus
    hidden = model.see_hidden(shown, fit, model.adapter) if plus else None
    seen = model.see(shown, fit, model.adapter)
    return sight(model.found.spec, _probe(model, model.adapter), seen, hidden)


def _probe(model: Model, adapter: Adapter | None) -> Tensor:
    """What the encoder of an adapter sees of the probe picture, [dim]; looked at once a model and adapter."""
    kept = _PROBES.setdefault(model, {})
    if id(adapter) not in kept:
        kept[id(adapter)] = model.see([probe_picture()], "squash", adapter)[0]
    return kept[id(adapter)]


def warnings(model: Model, request: Request) -> tuple[str, ...]:
    """What of a request's words the model was not taught, a sentence each."""
    typed = [each.contents for each in request.references if each.content is not None]  # not what a card says itself
    phrases = [phrase for several in typed for phrase in several if phrase.strip().lower() != "auto"]
    contents = [(phrase, "content of a reference: ") for phrase in phrases]
    said = [(request.prompt, ""), (request.negative, "negative prompt: "), *contents]
    found = [f"{where}{warning}" for text, where in said for warning in understand(model, text).warnings]
    return tuple(dict.fromkeys(found))
