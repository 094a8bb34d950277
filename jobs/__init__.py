"""The commands of crackscan, one module each: ``python -m jobs.infer --help``."""
