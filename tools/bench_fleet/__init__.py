"""The bench of a fleet."""
