"""What is done with what runs leave: scored again, refreshed, averaged, repeated."""
