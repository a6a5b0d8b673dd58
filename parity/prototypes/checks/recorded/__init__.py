"""What a recording says: configuration, batches, forward, backward, curve, and the run saved, reopened and resumed."""
