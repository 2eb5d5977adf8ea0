"""Fidelity on the command line: training of references, analysis of distributions, tables and pages."""
