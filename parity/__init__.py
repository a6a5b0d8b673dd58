"""A pytest harness that shows, number by number, that a port trains like its prototype."""
