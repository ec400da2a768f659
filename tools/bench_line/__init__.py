"""The line: what the agent adds to an inference, and what it takes from its rate."""
