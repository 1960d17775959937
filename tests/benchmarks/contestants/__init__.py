"""The alternatives, as people write them. Each is a program that prints one line of JSON with its phases."""
