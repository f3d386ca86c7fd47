"""Many chips under traffic."""
