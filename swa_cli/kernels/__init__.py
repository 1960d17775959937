"""HOW a step of a network on a processor is made fast: kernels of our own, compiled where they run."""
