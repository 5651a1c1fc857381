"""What several test folders make use of."""
