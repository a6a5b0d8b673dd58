"""Every check of every case of eagle3: the reference and the port, against the recordings or the live original."""

from parity.prototypes.pair import EAGLE3

test_eagle3 = EAGLE3
