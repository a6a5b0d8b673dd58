"""The other originals: where their training code lies in a checkout, and whether it is the code measured here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity.errors import InputError
from parity.prototypes.case import Algorithm
from parity.prototypes.original.checkout import Mismatch, differing, refuse

_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_CONFIGS = "14ae62877cd9ab12c9076fc70fe940714b9ca980865b00ba974de340df2d1ac5"


@dataclass(frozen=True)
class Other:
    """A training code outside of Speculators: ``folder`` is put on the path, ``script`` is run, ``hashes`` are SHA-256.

    ``algorithm`` is the prototype's that stands nearest.
    """

    name: str
    title: str
    algorithm: Algorithm
    repository: str
    commit: str
    folder: str
    script: str
    hashes: dict[str, str]

    @property
    def checkout(self) -> str:
        """What must lie at the root that a user names."""
        return f"a checkout of {self.repository} at {self.commit}"


OTHERS = {
    "eagle": Other(
        name="eagle",
        title="EAGLE `traineagle3`",
        algorithm="eagle3",
        repository="SafeAILab/EAGLE",
        commit="cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b",
        folder="eagle/traineagle3",
        script="main.py",
        hashes={
            "main.py": "439c4d8de398c8876f72806d7ba7e6436b5127a4751f3491505a3f51412a4eeb",
            "cnets.py": "71295b56d8bd5648a1c630af0995f6a23a13671c8e60fe92636fffd9ee786a9c",
            "configs.py": _CONFIGS,
            "modeling_llama_kv.py": "18adff2c21e659755eb41d6804fa6dd4b4d486b70d3c749693fbb44cff3855b5",
            "ds_config.json": "02b432995b51d8fa1cce7685b7430de7ce14de0419a6729cd9ff0c324c1bec0b",
        },
    ),
    "hass": Other(
        name="hass",
        title="HASS `main_hass`",
        algorithm="hass",
        repository="HArmonizedSS/HASS",
        commit="38922e43fec95f0bd2993f33aaa6ee82371741a5",
        folder=".",
        script="train/main_hass.py",
        hashes={
            "train/__init__.py": _EMPTY,
            "train/main_hass.py": "5e357f6496073293714763cbbb6038ee148c94975108fbd406efdceebb715b89",
            "model/__init__.py": _EMPTY,
            "model/cnets_hass.py": "49bd39872daa312396d8d5989654420163a75d50815afeda5f850c553ea68588",
            "model/configs.py": _CONFIGS,
            "model/utils_c.py": "fa7bee5ea870200756bd48bb27c1dbfb2e8f1d42f4e9c832d6b5d1681ca97f58",
            "model/choices.py": "5ab95137f63b61f756057927b2af427ffa0bc351384d99e334a9da853fcbfa7e",
        },
    ),
}


def verify_other(root: Path, other: Other) -> list[Mismatch]:
    """The files of a run that are not those of the commit; a missing folder or file is an :class:`InputError`."""
    if not (root / other.folder).is_dir():
        raise InputError(root, other.folder, "no such folder", other.checkout)
    return differing(root, other.folder, other.hashes, other.checkout)


def require_other(root: Path, other: Other) -> None:
    """Raise an :class:`InputError` that lists every file which differs from the measured commit."""
    refuse(root, verify_other(root, other), other.checkout)
