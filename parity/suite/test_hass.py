"""Every check of every case of hass: the reference and the port, against the recordings or the live original."""

from parity.prototypes.pair import HASS

test_hass = HASS
