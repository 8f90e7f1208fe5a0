"""Who calls: bearer tokens, signatures, the tailnet."""
