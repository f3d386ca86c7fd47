"""Facts about the world as tables with sources."""
