"""Plans: who may do what, decided from rows of a table and from the graph that is about to run."""
