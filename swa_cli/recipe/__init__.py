"""A recipe as a frozen value, with its checks and arithmetic; pure Python, without torch."""
