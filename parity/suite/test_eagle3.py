"""Every check of every case of eagle3: the reference and the port, against the recordings or the live original."""

from parity.prototypes.eagle3.pair import PAIR

test_eagle3 = PAIR
