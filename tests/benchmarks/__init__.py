"""What `make bench` runs: this tool beside the alternatives, on the same images, in one run on one machine."""
