"""HASS as a native Speculators algorithm, and its training.

Importing this package registers ``hass`` with Speculators; ``SpeculatorModel.from_pretrained(directory)`` then opens a
HASS checkpoint. Speculators looks for models in its own package only and has no entry point for others, so the import
has to come first::

    import ports.hass
    from speculators import SpeculatorModel

    draft = SpeculatorModel.from_pretrained("checkpoints/state_4")
"""

from ports.hass.config import HassSpeculatorConfig
from ports.hass.model import HassDraftModel

__all__ = ["HassDraftModel", "HassSpeculatorConfig"]
