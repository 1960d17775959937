"""HOW a run goes: builds plain arguments from a recipe and puts the rooms to work."""
