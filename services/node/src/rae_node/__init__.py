"""The agent of RAE Mesh: a guest on somebody else's desktop."""

__version__ = "0.1.0"
