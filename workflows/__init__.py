"""The workflows that we ship, and the script that builds them from the schemas of the nodes."""
