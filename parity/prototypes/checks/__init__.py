"""Checks of a prototype's pair that another pair has no use for."""
