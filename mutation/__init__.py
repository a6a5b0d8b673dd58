"""Mutation testing of the parity suite: mutants of the ports' code, and whether ``parity run``'s checks alone kill them.

``python -m mutation`` makes and judges mutants, ``python -m mutation report`` writes what came out as a page.
"""
