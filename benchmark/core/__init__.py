"""What every stage shares: errors, specifications of runs, protocols, random streams, statistics, devices, text."""
