"""Everything the scripts share; docs/architecture.md says how it is laid out."""
