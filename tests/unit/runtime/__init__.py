"""Tests of the builders; a package, so that they share stand-ins."""
