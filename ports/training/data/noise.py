"""Uniform noise on the features, drawn afresh at every visit of a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor], Tensor]
"""Takes a tensor [1, T, F], returns uniforms in [0, 1) of its shape and dtype."""

STD = 0.2
REFERENCE_LENGTH = 512


def add_uniform_noise(features: Tensor, draw: Draw = torch.rand_like) -> Tensor:
    """``features + (u - 0.5) * 0.2 * 512 / T`` for features [T, F]; T is the sample's own length.

    The uniforms have a leading batch axis of one, as the prototypes draw them, so that a recorded draw fits.
    """
    uniforms = draw(features[None])[0]
    return features + (uniforms - 0.5) * STD * REFERENCE_LENGTH / features.shape[0]
