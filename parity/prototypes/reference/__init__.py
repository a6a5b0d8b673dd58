"""A plain re-implementation of the prototypes, written for reading, in any dtype up to float64.

It shares no code with the ports: ``attention`` (the dense form), ``layer`` (a Llama layer over the steps), ``drafts``
(what enters it, and the objectives), ``data`` (files to batches), ``loop`` (the run, with clipping and optimizer). Like
the prototypes it projects the history again at every step and scores every pair of positions, so it also stands in for
their cost where no checkout is at hand.
"""
