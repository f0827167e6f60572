"""Recordings of what the core was told and answered, and what it would answer now."""
