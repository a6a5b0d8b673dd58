"""What every port shares: records, batches, vocabulary maps, TTT attention, objective, loop, logs and checkpoints."""
