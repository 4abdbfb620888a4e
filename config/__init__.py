"""Configuration: every flag once, resolved and validated; imports no torch."""
