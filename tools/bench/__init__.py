"""`make bench`: how fast, how light, beside whom; one run on this machine."""
