"""The version, for what must not import the models."""

__version__ = "0.1.0"
