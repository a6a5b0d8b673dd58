"""Where a server with the OpenAI API is, and the key that it may want."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pydantic import SecretStr

from ports.errors import InputError

API_KEY = "OPENAI_API_KEY"
"""What the environment calls the key of a server, for every client."""

KEY_HELP = f"key of a server that wants one; default: {API_KEY} of the environment, which no list of processes shows"

LONGEST = 200
"""Characters of what a server said that an error repeats."""


@dataclass
class Address:
    """A server's ``url``, with or without ``/v1``, and its ``key``; None: the one of the environment, if it has one.

    Raises:
        InputError: a key that no header can hold.
    """

    url: str
    key: SecretStr | None = None

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix("/v1")
        if not re.fullmatch("[!-~]*", self._secret):
            place, found = f"--api-key or {API_KEY}", "characters that no header can hold"
            raise InputError("command line or environment", place, found, "visible characters of ASCII")

    @property
    def _secret(self) -> str:
        return self.key.get_secret_value() if self.key else os.environ.get(API_KEY, "")

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"Authorization": f"Bearer {self._secret}"} if self._secret else {}

    def refused(self, path: str, found: str, expected: str) -> InputError:
        """What is wrong with a reply; a key that the server repeats in it is left out."""
        told = found.replace(self._secret, "(the key)") if self._secret else found
        return InputError(self.url, f"--server {path}", told[:LONGEST], expected)

    def status_refused(self, path: str, status: int, expected: str) -> InputError:
        """The same of a status."""
        key = f"a key that the server takes, as --api-key or {API_KEY}"
        return self.refused(path, f"status {status}", key if status in (401, 403) else expected)
