"""InvokeAI nodes: read fields, call the core once, save. No tensor arithmetic lives here."""
