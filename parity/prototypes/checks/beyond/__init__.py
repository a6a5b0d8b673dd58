"""What no recording holds: fresh weights, options, sources of data, sizes and corners; the other side is made here."""
