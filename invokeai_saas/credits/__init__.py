"""The books: what was granted, what is held for jobs, what was used. Every move is one function of 0010_credits.sql."""
