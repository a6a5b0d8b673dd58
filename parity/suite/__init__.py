"""The parity suite: ``pytest --pyargs parity.suite [--recordings DIR] [--original DIR]``, the pairs as test items."""
