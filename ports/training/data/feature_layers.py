"""Which verifier layers an Eagle3 draft's features come from, as entries of ``hidden_states`` (0 is the embedding)."""

from __future__ import annotations

import warnings

from ports.errors import InputError

NUM_FEATURES = 3
"""Verifier layers that the records' features come from."""


def aux_layer_ids(basepath: str, num_layers: int) -> list[int]:
    """After how many verifier layers the features are taken: 3, n // 2 + 1 and n - 2, as in the prototype's data.

    Speculators and vLLM count the same way (0 is the embedding), but their own rule is one layer less at each place.
    Speculators refuses repeated ids, and the rule repeats them for verifiers of 4 to 6 layers; three neighbouring
    distinct layers are taken then and a warning says so.

    Raises:
        InputError: the verifier at ``basepath`` has fewer than three layers, so that the rule names none of them.
    """
    if num_layers < NUM_FEATURES:
        raise InputError(basepath, "num_hidden_layers", num_layers, f"at least {NUM_FEATURES}, to take features from")
    ids = [3, num_layers // 2 + 1, num_layers - 2]
    if len(set(ids)) == NUM_FEATURES:
        return ids
    distinct = _distinct(ids, num_layers)
    warnings.warn(
        f"a verifier of {num_layers} layers gives feature layers {ids}, which Speculators cannot record; "
        f"{distinct} are named instead; a draft on records of the prototypes could not be served with them",
        stacklevel=2,
    )
    return distinct


def chosen_layers(choice: str, verifier: str, num_layers: int) -> list[int]:
    """The three entries that ``choice`` names: ``prototype``, ``speculators`` (2, n // 2 and n - 3), or ``a,b,c``.

    Raises:
        InputError: anything else, an entry that the verifier does not have, or one named twice by the user.
    """
    if choice == "prototype":
        return aux_layer_ids(verifier, num_layers)
    layers = [2, num_layers // 2, num_layers - 3] if choice == "speculators" else _listed(choice)
    if len(set(layers)) != NUM_FEATURES or not all(0 <= layer < num_layers for layer in layers):
        expected = f"prototype, speculators, or {NUM_FEATURES} different entries below {num_layers}, as in 2,16,29"
        raise InputError("command line", "--aux_layers", f"{choice} ({layers})", expected)
    return layers


def _listed(choice: str) -> list[int]:
    return [int(word) if word.strip().isdecimal() else -1 for word in choice.split(",")]


def _distinct(ids: list[int], num_layers: int) -> list[int]:
    taken: list[int] = []
    for wanted in ids:
        free = [layer for layer in range(num_layers + 1) if layer not in taken]
        taken.append(min(free, key=lambda layer: abs(layer - wanted)))
    return taken
