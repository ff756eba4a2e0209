"""What administrators look at: money in, work done, margins; as JSON and as CSV."""
