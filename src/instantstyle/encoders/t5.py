"""T5, and what transformers read of it beside CLIP: the long context by T5, a pooled embedding of the text by CLIP."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from instantstyle.encoders.clip import TextEmbeddings, TextEncoder, reload_on_use
from instantstyle.errors import WeightsError
from instantstyle.weights.resolve import ResolvedModel
from instantstyle.weights.strict_load import from_pretrained_strict


@dataclass(frozen=True)
class T5Encoder(TextEncoder):
    """T5's encoder with its tokenizer; every text is padded to one length, and padding is attended to."""

    length: int = 512

    special_tokens = 1

    @property
    def max_length(self) -> int:
        """Tokens every text is padded to."""
        return self.length

    def encode(
        self, texts: Sequence[str], skip: int, device: torch.device, *, final_norm: bool = False
    ) -> tuple[Float[Tensor, "n length width"], None]:
        """The last hidden states, and no embedding."""
        return self.network()(self.tokenize(texts).to(device))[0], None


def load_t5_encoder(
    source: ResolvedModel, suffix: str, length: int, dtype: torch.dtype, device: torch.device, *, keep: bool = True
) -> T5Encoder:
    """The T5 encoder of a model, in `text_encoder` and `tokenizer` with a suffix.  Raises WeightsError."""
    transformers: Any = importlib.import_module("transformers")
    if not source.has(f"text_encoder{suffix}"):
        raise WeightsError(f"the model in {source.folder} has no text_encoder{suffix}: T5 is not left out here")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.folder / f"tokenizer{suffix}", local_files_only=True
        )
    except Exception as e:  # a dozen kinds, none of them documented
        raise WeightsError(f"cannot read the tokenizer in {source.folder / f'tokenizer{suffix}'}: {e}") from e

    def make() -> Any:
        # Of T5 only the encoder is published here, under the names of the whole.
        kind, folder = transformers.T5EncoderModel, source.folder / f"text_encoder{suffix}"
        return from_pretrained_strict(kind, folder, dtype, device, besides=r"encoder\.embed_tokens\.")

    return T5Encoder(tokenizer, make() if keep else reload_on_use(make), length=length)


def encode_joint_text(
    text_encoders: Sequence[TextEncoder], texts: Sequence[str], device: torch.device
) -> TextEmbeddings:
    """What Flux and Stable Diffusion 3 read of some texts, by as many encoders as they have; the last is T5.

    Flux: T5's tokens, and the pooled output of one CLIP.  Stable Diffusion 3: the tokens of two CLIPs side by side,
    filled up with zeros to T5's width, and behind them T5's; the projected embeddings of the two side by side.
    """
    *clips, t5 = text_encoders
    context = t5.encode(texts, 1, device)[0]
    if len(clips) == 1:
        return TextEmbeddings(context, _pooled(clips[0], texts, device), None)
    hidden, embeds = zip(*(clip.encode(texts, 2, device) for clip in clips), strict=True)
    side_by_side = torch.cat(list(hidden), dim=-1)
    padded = F.pad(side_by_side, (0, context.shape[-1] - side_by_side.shape[-1]))
    return TextEmbeddings(torch.cat([padded, context], dim=1), torch.cat(list(embeds), dim=-1), None)


def _pooled(clip: TextEncoder, texts: Sequence[str], device: torch.device) -> Tensor:
    return clip.network()(clip.tokenize(texts).to(device)).pooler_output
