"""What it costs, with ranges and sources."""
