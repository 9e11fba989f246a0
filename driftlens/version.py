"""The package's version, on a floor of its own: results name it, and importing it imports nothing else."""

__version__ = "0.1.0"
