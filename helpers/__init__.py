"""Everything the scripts share. See README.md, "How the code is laid out"."""
