"""Train and evaluate: turn a recipe into plain arguments for the packages below."""
