"""CLIP from a folder on disk, for measuring away from a host: does the image show what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import LikenessError
from ..models_download import sha256

_WEIGHTS = "model.safetensors"


class FolderClip:
    """A CLIP in the layout of transformers, as an `ImageTextEncoder`; nothing is fetched, no code in it is run.

    folder: holds `config.json`, `model.safetensors`, the tokenizer's files and `preprocessor_config.json`, such as a
    copy of openai/clip-vit-large-patch14. LikenessError when one of them is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        if not (folder / _WEIGHTS).is_file():
            raise LikenessError(
                f"There is no {_WEIGHTS} in {folder}: name the folder of a whole CLIP, such as a copy of "
                "openai/clip-vit-large-patch14."
            )
        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self._look: Any = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LikenessError(f"The CLIP in {folder} cannot be read ({reason}): copy the folder again.") from None
        self._model: Any = model.float().eval()
        self.name = sha256(folder / _WEIGHTS)  # what was measured with it is kept under this

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, H, W, 3) RGB 0..1, cut to their middle square, to embeddings (n, D)."""
        photos = list((images.clamp(0, 1) * 255).round().byte().numpy())
        pixels = self._look(images=photos, return_tensors="pt")["pixel_values"]
        return self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to embeddings (n, D)."""
        said = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self._model.text_projection(self._model.text_model(**said).pooler_output)

    def count_tokens(self, text: str) -> int:
        """How many tokens the text has, start and end included."""
        return len(self._tokenizer(text)["input_ids"])
