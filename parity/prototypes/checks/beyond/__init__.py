"""What no recording holds, made here: the port against Speculators itself."""
