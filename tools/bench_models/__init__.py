"""Real networks and the tools that judge what was made of them, for `tools/bench` and the tests."""
