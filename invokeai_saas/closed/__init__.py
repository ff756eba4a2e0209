"""What InvokeAI offers and a server for many users must not: nodes (nodes.py) and routes (routes.py) that are off, each with its reason."""
