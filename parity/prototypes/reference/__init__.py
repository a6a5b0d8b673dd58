"""A plain re-implementation of the prototypes, written for reading, in any dtype up to float64.

It shares no code with the ports: ``parts`` (norm, rope, linear), ``attention`` (the dense form), ``layer`` (the decoder
layer over the steps), ``eagle3`` and ``hass`` (what enters it, and the objective), ``data`` (files to batches),
``adamw`` (optimizer, schedule, clipping), ``loop`` (the run). Like the prototypes it projects the history again at
every step and scores every pair of positions, so it also stands in for their cost where no checkout is at hand.
"""
