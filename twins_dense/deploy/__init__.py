"""Export models to files that run without this package, and compare their speed with other implementations."""
