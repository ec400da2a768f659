"""The ladder: what distilling, pruning and quantizing cost, and what they bring."""
