"""TTT attention: dense for reading, in O(T) memory for speed."""
