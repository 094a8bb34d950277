"""Beam pipelines of crackscan, and the plain functions that they wire."""
