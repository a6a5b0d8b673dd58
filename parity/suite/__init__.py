"""The parity suite: ``pytest --pyargs parity.suite [--recordings DIR] [--prototype DIR]``."""
