"""The one place that states memplan's version."""

__version__ = "0.1.0"
