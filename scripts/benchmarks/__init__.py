"""Benchmarks: this engine beside its peers, packed beside padded, C++ beside Python, demoBERT's grid of models."""
