"""Running the service: logs, health, metrics, traces, headers, limits, an orderly end, and a doctor. Start with install.py."""
