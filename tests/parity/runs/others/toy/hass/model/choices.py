"""Nothing that is used."""
