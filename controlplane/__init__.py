"""Composition, configuration, command line, slow loops. The only package that names concrete classes of all others."""
