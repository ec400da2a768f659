"""`tools/bench quantize`: our INT8 graphs beside float ones and what a user would reach for; the checks of issue 4."""
