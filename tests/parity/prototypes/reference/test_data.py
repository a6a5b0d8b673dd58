"""Samples and draws of noise that are not there."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.reference.data import batches_of


def test_missing_samples_and_draws_are_named(cases, tmp_path):
    case = cases["eagle3_fp32_k3_noise"]
    stored = load_file(case.uniforms)
    save_file({name: stored[name] for name in sorted(stored)[:3]}, tmp_path / "noise_uniforms.safetensors")
    few = batches_of(replace(case, directory=tmp_path))
    next(few)
    with pytest.raises(InputError, match="noise: found 3 draws, expected one more"):
        next(few)
    with pytest.raises(InputError, match=r"data_\d+\.ckpt: file"):
        next(batches_of(replace(case, tmpdir=tmp_path)))
