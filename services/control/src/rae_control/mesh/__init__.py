"""Memory that follows the ledger, and the loops that act on it."""
