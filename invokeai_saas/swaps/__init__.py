"""Replacements of InvokeAI's services, one file per base class."""
