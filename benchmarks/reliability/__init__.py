"""What must hold whatever happens: searches given up at random."""
