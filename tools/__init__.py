"""Command line, report, demo."""
