"""Research training prototypes, ported to train Speculators models natively.

Importing this package makes ``transformers`` and ``speculators`` importable beside a CPU build of torch; see
:func:`ports._starting.skip_torchaudio`.
"""

from ports._starting import quiet_interrupt, skip_torchaudio

quiet_interrupt()
skip_torchaudio()
