"""Units, errors, facts with sources, digests: what everything else stands on."""
