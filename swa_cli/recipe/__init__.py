"""WHAT to do: a recipe as a frozen value, its checks and its arithmetic. Pure Python: nothing here imports torch."""
