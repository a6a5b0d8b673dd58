"""Ports as ``parity new`` lays them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from parity.scaffold import new_port


@pytest.fixture(scope="module")
def lay_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """``lay_out(name)``: the port of that name can be imported for the rest of the module."""
    with pytest.MonkeyPatch.context() as patch:

        def make(name: str) -> str:
            folder = tmp_path_factory.mktemp(name)
            new_port(name, folder)
            patch.syspath_prepend(folder)
            return name

        yield make
