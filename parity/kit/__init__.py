"""What is on its way to its place above."""
