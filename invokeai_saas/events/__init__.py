"""What happens in one process is heard in all of them, by whom it concerns."""
