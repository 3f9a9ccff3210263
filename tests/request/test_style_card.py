"""Style cards: what is kept is what encoders saw, it survives wherever it goes, and a hostile file is a sentence."""

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import tiny_models
from instantstyle.errors import InputError, PictureError, WeightsError
from instantstyle.request import GenerationMetadata, Request, StyleReference, recall
from instantstyle.request.style_card import (
    MAX_CARD_BYTES,
    SHIPPED_STYLES,
    SUFFIX,
    EncoderEmbeddings,
    FloatArray,
    StyleCard,
    encoder_fingerprint_image,
    float_array,
    read_card,
)
from instantstyle.utils import images


def card(name: str = "ink", **fields: Any) -> StyleCard:
    """A card without a model."""
    rng = np.random.default_rng(3)
    sights = [EncoderEmbeddings("an encoder", float_array(rng.normal(size=5)), float_array(rng.normal(size=(2, 5))))]
    small = [images.encode_png(tiny_models.picture(seed)) for seed in (1, 2)]
    given: dict[str, Any] = {"name": name, "sights": sights, "thumbnails": small, "licence": "CC0-1.0", **fields}
    return StyleCard(**given)


@pytest.mark.parametrize("content", [None, "dog", ("dog", "a red house"), ()])
def test_a_card_survives_its_file(content: Any, tmp_path: Path) -> None:
    hidden = float_array(np.arange(12).reshape(2, 3, 2))
    plus = EncoderEmbeddings("another", float_array([1.0, 2.0]), float_array(np.ones((2, 2))), hidden)
    made = card(content=content, plan="up.0.1=1.2", credit="naïve ink 墨", sights=[*card().sights, plus])
    path = made.save(tmp_path / f"ink{SUFFIX}")
    assert read_card(path) == made
    assert read_card(path.read_bytes()).sha256 == made.sha256


def test_a_card_survives_json_and_png(tmp_path: Path) -> None:
    asked = Request("a cat", references=[StyleReference(card(), weight=0.5)])
    again = Request.from_json(asked.to_json())
    assert again == asked
    assert isinstance(again.references[0].image, StyleCard)
    images.write_png(tiny_models.picture(), tmp_path / "a.png", GenerationMetadata(asked).to_json())
    assert recall(tmp_path / "a.png").request == asked


def test_a_reference_is_a_card_by_name_by_file_and_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANTSTYLE_STYLES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = card("my ink").save(tmp_path / f"my ink{SUFFIX}")
    given = [StyleReference(each).image for each in (card("my ink"), "my ink", path, str(path))]
    assert all(each == given[0] for each in given)
    tiny_models.picture().save(tmp_path / "neon", "PNG")  # a file goes before a card of its name
    assert not isinstance(StyleReference("neon").image, StyleCard)
    assert isinstance(StyleReference("chalk").image, StyleCard)


def test_json_from_elsewhere_names_shipped_cards_and_opens_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTANTSTYLE_STYLES", str(tmp_path))
    path = card("secret").save(tmp_path / f"secret{SUFFIX}")
    shipped = Request.from_json('{"prompt": "a cat", "references": [{"image": "neon"}]}')
    assert isinstance(shipped.references[0].image, StyleCard)
    for name in ("secret", str(path), "../styles/neon"):
        with pytest.raises(PictureError, match="not the path"):
            Request.from_json(json.dumps({"prompt": "a cat", "references": [{"image": name}]}))


def test_a_name_that_is_neither_picture_nor_card_is_told_with_the_nearest() -> None:
    with pytest.raises(PictureError, match=r"no picture at 'neom'.*did you mean 'neon'"):
        StyleReference("neom")
    with pytest.raises(PictureError, match=r"there are blueprint, .*watercolour"):
        StyleReference("zzz")


def test_a_card_says_its_content_unless_the_reference_does() -> None:
    own = card(content="dog", plan="layout")
    assert StyleReference(own).content_phrases == ("dog",)
    assert StyleReference(own, content="cat").content_phrases == ("cat",)
    assert StyleReference(own, content="").content_phrases == ()
    assert (StyleReference(own).effective_plan, StyleReference(own, plan="all").effective_plan) == ("layout", "all")


def test_twelve_cards_are_shipped_with_picture_and_licence() -> None:
    found = [read_card(path) for path in sorted(SHIPPED_STYLES.glob(f"*{SUFFIX}"))]
    assert len(found) == 12
    for each, path in zip(found, sorted(SHIPPED_STYLES.glob(f"*{SUFFIX}")), strict=True):
        assert path.name == f"{each.name}{SUFFIX}"
        assert (each.licence, bool(each.credit), bool(each.pictures())) == ("CC0-1.0", True, True)


def test_what_the_shipped_cards_hold_is_what_the_shipped_encoder_sees() -> None:
    """Against transformers reading the same folder; fails when the encoder was trained on and the cards were not made
    anew: python -m instantstyle.emoji.build_style_cards."""
    import torch

    folder = SHIPPED_STYLES.parent / "emoji"
    if not folder.exists():
        pytest.skip("this tree has no built-in model")
    net = (
        tiny_models.transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").float().eval()
    )
    process = tiny_models.transformers.CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    shown = [read_card(path) for path in sorted(SHIPPED_STYLES.glob(f"*{SUFFIX}"))]
    seen = [encoder_fingerprint_image(), *(picture for each in shown for picture in each.pictures())]
    with torch.no_grad():
        theirs = net(process([picture.convert("RGB") for picture in seen], return_tensors="pt").pixel_values)
    probe, *rest = theirs.image_embeds.numpy()
    ours = [row for each in shown for row in each.sights[0].embeds.array]
    for mine, other in zip([shown[0].sights[0].probe.array, *ours], [probe, *rest], strict=True):
        assert np.linalg.norm(mine - other) < 0.02 * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "../../etc/passwd"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": " "}, "name"),
        ({"sights": []}, "sights"),
        ({"thumbnails": [b"no picture"]}, "no picture"),
        ({"thumbnails": [b""]}, "empty"),
        ({"licence": "x" * 300}, "licence"),
    ],
)
def test_a_card_that_cannot_be_is_a_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        card(**fields)


@pytest.mark.parametrize(
    "made",
    [
        lambda: FloatArray((3,), b"\0" * 8),
        lambda: FloatArray((2**24, 2**24, 2**24), b""),
        lambda: float_array([1.0, float("nan")]),
        lambda: EncoderEmbeddings("e", float_array([1.0]), float_array([[1.0, 2.0]])),
        lambda: EncoderEmbeddings("e", float_array([1.0]), float_array([[1.0]]), float_array(np.ones((2, 3, 4)))),
    ],
)
def test_numbers_that_cannot_be_are_a_sentence(made: Any) -> None:
    with pytest.raises(InputError):
        made()


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a card was run",))


def _file(said: Any, **tensors: Any) -> bytes:
    arrays = {"0.probe": np.ones(2, np.float32), "0.embeds": np.ones((1, 2), np.float32)} | tensors
    return save(arrays, {"instantstyle": said if isinstance(said, str) else json.dumps(said)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        pickle.dumps(Evil()),
        b"PK\x03\x04" + b"\0" * 60,
        b"\0" * (MAX_CARD_BYTES + 1),
        save({"weight": np.ones(3, np.float32)}),
        _file("no json"),
        _file("[]"),
        _file("[" * 100_000),
        _file({"name": "a"}),
        _file({"name": "a", "encoders": ["e", "f"]}),
        _file({"name": "a", "encoders": 3}),
        _file({"name": "../a", "encoders": ["e"]}),
        _file({"name": "a", "encoders": ["e"], "command": "rm"}),
        _file({"name": "a", "encoders": ["e"]}, **{"0.probe": np.array([np.nan, 1], np.float32)}),
        _file({"name": "a", "encoders": ["e"]}, **{"0.probe": np.ones(2, np.int64)}),
        _file({"name": "a", "encoders": ["e"]}, **{"thumbnail.0": np.ones(9, np.float32)}),
        _file({"name": "a", "encoders": ["e"]}, **{"thumbnail.0": np.ones(9, np.uint8)}),
        _file({"name": "a", "encoders": ["e"]}, **{"thumbnail.x": np.ones(9, np.uint8)}),
    ],
)
def test_a_hostile_file_is_a_sentence_and_nothing_runs(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"evil{SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="evil"):
        read_card(path)
    with pytest.raises(WeightsError):
        StyleReference(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_a_card_or_a_sentence(data: st.DataObject) -> None:
    content = bytearray(_file({"name": "a", "encoders": ["e"]}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WeightsError):
        read_card(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / f"none{SUFFIX}", tmp_path):
        with pytest.raises(WeightsError, match="no style card"):
            read_card(path)
    with pytest.raises(InputError, match="must end"):
        card().save(tmp_path / "ink.safetensors")
