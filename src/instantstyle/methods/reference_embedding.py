"""Image features of references: of pictures by the encoder of an adapter, of style cards from their file."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from instantstyle.errors import InputError
from instantstyle.model import Model
from instantstyle.request import ImageInput, Request, StoredImage, store_image
from instantstyle.request.style_card import THUMBNAIL_SIDE, EncoderEmbeddings, StyleCard, encoder_fingerprint_image
from instantstyle.utils.images import ResizeMode, encode_png
from instantstyle.weights.adapter import Adapter
from instantstyle.weights.style_card import make_embeddings, matching_embeddings

_FINGERPRINTS: WeakKeyDictionary[Model, dict[int, Tensor]] = WeakKeyDictionary()


def embed_references(
    model: Model, images: Sequence[StoredImage | StyleCard], fit: ResizeMode = "squash", adapter: Adapter | None = None
) -> Float[Tensor, "n *features"]:
    """What an adapter reads of each reference: embeddings [n, dim], or for Plus hidden states [n, sequence, width].

    Of a card it is the mean over its pictures.  Raises WeightsError when a card was made for another encoder,
    InputError when there is no image encoder.
    """
    hidden = adapter is not None and adapter.is_plus
    pictures = [image.open() for image in images if isinstance(image, StoredImage)]
    encode = model.image_hidden_states if hidden else model.encode_image
    rows = encode(pictures, fit, adapter) if pictures else torch.empty(0)
    encoded = (rows[i : i + 1] for i in range(len(pictures)))
    probe = _encoder_fingerprint(model, adapter) if len(pictures) < len(images) else None

    def each(image: StoredImage | StyleCard) -> Tensor:
        if isinstance(image, StoredImage):
            return next(encoded)
        assert probe is not None
        return matching_embeddings(image, probe, hidden=hidden).mean(0, keepdim=True).to(model.device, model.dtype)

    return torch.cat([each(image) for image in images])


def make_card(
    model: Model,
    name: str,
    of: Sequence[ImageInput],
    *,
    content: str | Sequence[str] | None = None,
    plan: str | None = None,
    licence: str = "",
    credit: str = "",
    fit: ResizeMode = "squash",
) -> StyleCard:
    """A style card of pictures for a model's image encoder.

    Raises InputError when there is no picture or no image encoder, PictureError when a picture cannot be read.
    """
    if not of:
        raise InputError("a style card is made of at least one picture, and none is given")
    pictures = [store_image(each).open() for each in of]
    small = [encode_png(each, longest=THUMBNAIL_SIDE) for each in pictures]
    return StyleCard(name, [_encoder_embeddings(model, pictures, fit)], small, content, plan, licence, credit)


def reembed(model: Model, card: StyleCard, fit: ResizeMode = "squash") -> StyleCard:
    """A card with this model's embeddings of the card's own pictures, in place of those it may have held.

    Raises InputError when the card carries no picture.
    """
    anew = _encoder_embeddings(model, card.pictures(), fit)
    others = [each for each in card.sights if each.probe != anew.probe]
    return card.model_copy(update={"sights": (anew, *others)})


def reembed_cards(model: Model, request: Request) -> Request:
    """A request whose style cards hold this model's embeddings of their pictures."""
    images = [each.image for each in request.references]
    anew = [reembed(model, image, request.fit) if isinstance(image, StyleCard) else image for image in images]
    pairs = zip(request.references, anew, strict=True)
    return request.model_copy(update={"references": tuple(r.model_copy(update={"image": i}) for r, i in pairs)})


def _encoder_embeddings(model: Model, pictures: Sequence[Image.Image], fit: ResizeMode) -> EncoderEmbeddings:
    plus = model.adapter is not None and model.adapter.is_plus
    hidden = model.image_hidden_states(pictures, fit, model.adapter) if plus else None
    embeds = model.encode_image(pictures, fit, model.adapter)
    return make_embeddings(model.source.spec, _encoder_fingerprint(model, model.adapter), embeds, hidden)


def _encoder_fingerprint(model: Model, adapter: Adapter | None) -> Tensor:
    """The embedding of the fingerprint image by the encoder of an adapter, [dim]; computed once a model and adapter."""
    kept = _FINGERPRINTS.setdefault(model, {})
    if id(adapter) not in kept:
        kept[id(adapter)] = model.encode_image([encoder_fingerprint_image()], "squash", adapter)[0]
    return kept[id(adapter)]
