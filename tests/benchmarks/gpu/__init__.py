"""What `make gpu` measures on one card: speed beside bare loops and scripts, and two networks of the paper."""
