"""Mutants of the ports' code, and whether the checks of ``parity run`` alone kill them.

``python -m mutation`` makes and judges mutants, ``python -m mutation report`` writes what came out as a page.
"""
