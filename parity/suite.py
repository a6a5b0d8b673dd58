"""The parity suite, ``pytest --pyargs parity.suite [--recordings DIR] [--original DIR]``: every check of every case of
both shipped pairs, the reference and the port, against the recordings or the live original."""

from parity.prototypes.eagle3 import pair as eagle3
from parity.prototypes.hass import pair as hass

test_eagle3 = eagle3.PAIR
test_hass = hass.PAIR
