"""The parity suite, ``pytest --pyargs parity.suite [--recordings DIR] [--original DIR]``: every check of every case of
both shipped pairs, the reference and the port, against the recordings or the live original."""

from parity.prototypes.pair import EAGLE3, HASS

test_eagle3 = EAGLE3
test_hass = HASS
