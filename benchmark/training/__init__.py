"""The engine: learners in cohorts, their checkpoints, evaluation."""
