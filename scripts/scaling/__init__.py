"""Many files of questions, spread by Ray Data over engines: what scripts/answer_ray.py runs."""
