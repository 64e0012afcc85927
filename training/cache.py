"""Tensors that are made once and used in many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import LikenessError


class TensorCache:
    """Keeps small dictionaries of tensors on the CPU: in memory up to a limit, the rest in files of a folder."""

    def __init__(self, folder: Path, megabytes: int, enabled: bool = True) -> None:
        self.enabled = enabled
        self._folder = folder
        self._room = megabytes * 2**20
        self._memory: dict[object, Mapping[str, Tensor]] = {}
        self._files: dict[object, Path] = {}

    def get(self, key: object, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What `make` returned the first time for this key, without gradient."""
        from safetensors.torch import load_file

        if key in self._memory:
            return self._memory[key]
        if key in self._files:
            return load_file(self._files[key])
        made = {name: value.detach().cpu().contiguous() for name, value in make().items()}
        size = sum(value.numel() * value.element_size() for value in made.values())
        if self.enabled and size <= self._room:
            self._room -= size
            self._memory[key] = made
        elif self.enabled:
            self._files[key] = self._write(made)
        return made

    def _write(self, made: Mapping[str, Tensor]) -> Path:
        from safetensors.torch import save_file

        path = self._folder / f"{len(self._files)}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(made), path)
        except Exception as error:
            raise LikenessError(
                f"The training's cache could not be written to '{self._folder}' ({error}): free some space, or turn "
                "the caches off."
            ) from error
        return path
