"""What each method of classification is worth on real surfaces; see main.py."""
