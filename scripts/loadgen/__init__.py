"""The code of scripts/mlperf.py: MLPerf's LoadGen over an engine."""
