"""Who works on which queue item, for how long, and whose writes count."""
