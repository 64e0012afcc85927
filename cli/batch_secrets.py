"""Headers and keys for a batch's servers, named on the command line and read from the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import LikenessError


class Secrets:
    """Headers and keys for servers, out of the environment. They are shown and written nowhere."""

    def __init__(self, header_env: Sequence[str] = (), api_key_env: Sequence[str] = ()):
        self._headers: list[tuple[str, str, str]] = []
        for text in header_env:
            left, _, variable = text.rpartition("=")
            where, _, header = left.rpartition(":")
            if not where or not header or not variable:
                raise LikenessError(f"--header-env is {text!r}: write one such as gpu1:8188:Authorization=GPU1_TOKEN.")
            self._headers.append((where, header, _secret(variable, "--header-env")))
        self._keys: dict[str, str] = {}
        for text in api_key_env:
            where, _, variable = text.rpartition("=")
            if not where or not variable:
                raise LikenessError(f"--api-key-env is {text!r}: write one such as gpu1:8188=COMFY_KEY.")
            self._keys[where] = _secret(variable, "--api-key-env")
        self._used = {"*"}

    def headers_for(self, where: Sequence[str]) -> dict[str, str]:
        """The headers of a server that goes by these names."""
        return {header: value for of, header, value in self._headers if of in self._match(where)}

    def key_for(self, where: Sequence[str]) -> str:
        """The key of the server; empty where it may spend nothing."""
        return next((key for of, key in self._keys.items() if of in self._match(where)), "")

    def expect_used(self) -> None:
        """LikenessError for a server that there is not: its key would be missed at night."""
        for of in (*(of for of, _, _ in self._headers), *self._keys):
            if of not in self._used:
                raise LikenessError(
                    f"A header or a key is for {of!r}, which is not a --server: write it as there, or *."
                )

    def _match(self, where: Sequence[str]) -> set[str]:
        self._used.update(where)
        return {"*", *where}


def _secret(variable: str, option: str) -> str:
    if not (value := os.environ.get(variable)):
        raise LikenessError(f"The variable {variable!r} of {option} is not set: export it first.")
    if any(letter in value for letter in "\r\n\0"):
        raise LikenessError(f"The variable {variable!r} of {option} holds a line break: correct it.")
    return value
