"""Meshes of real processes that work, are disturbed, and are audited."""
