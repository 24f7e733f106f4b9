"""echod: a production echo daemon (RFC 862)."""

__version__ = "0.1.0"
