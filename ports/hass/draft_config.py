"""From whatever names a draft to :class:`~ports.hass.config.HassSpeculatorConfig`."""

from __future__ import annotations

from ports.hass.config import HassSpeculatorConfig
from ports.hass.model import HassDraftModel
from ports.training.alignment import Alignment
from ports.training.draft_config import (
    DRAFT_LAYERS,
    attach_verifier,
    check_builds,
    check_sizes,
    check_trainable,
    is_native,
    native_config,
    prototype_layer,
    read_config_dict,
)
from ports.training.verifier import verifier_config


def load_draft_config(
    configpath: str, basepath: str, ttt_steps: int, alignment: Alignment = Alignment.PROTOTYPE
) -> HassSpeculatorConfig:
    """The draft's config, attached to the verifier at ``basepath``.

    Args:
        configpath: the prototype's draft JSON, a Speculators config or checkpoint directory, or a hub id.
        basepath: verifier directory or hub id.
        ttt_steps: how many tokens the draft proposes when it is served.
        alignment: how the draft will be trained; takes the place of the one that a Speculators config names.

    Raises:
        InputError: unreadable file, unknown key or value, another kind of speculator or of layer, sizes unlike the
            verifier's, or several layers in prototype alignment.
    """
    source = read_config_dict(configpath)
    if is_native(source):
        layer = native_config(configpath, source, "hass").transformer_layer_config
    else:
        layer = prototype_layer(configpath, source, DRAFT_LAYERS["hass"])
    check_sizes(configpath, layer, verifier_config(basepath))
    check_trainable(configpath, layer, alignment)
    config = HassSpeculatorConfig(
        transformer_layer_config=layer,
        ttt_alignment=alignment.value,
        speculators_config=attach_verifier("hass", basepath, ttt_steps),
    )
    check_builds(configpath, HassDraftModel, config)
    return config
