"""What must hold whatever happens: searches given up and runs killed at random."""
