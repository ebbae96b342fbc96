"""From tables and figures to runs, cohorts and jobs."""
