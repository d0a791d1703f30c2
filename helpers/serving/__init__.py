"""What runs inside a server of models: requests → replies, without a server of our own around it.

service.py knows no server. model.py is what Triton's Python backend loads, called_engine.py an engine that is another
model of the same server. scripts/export_triton.py puts them, with the rest of helpers/ that they need, beside an engine.
"""
