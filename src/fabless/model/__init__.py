"""Models: where they come from and what a step of one computes."""
