"""Patches that let InvokeAI 6.14 know our video models, applied in memory; see patches/README.md."""
