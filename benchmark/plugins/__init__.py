"""Methods found in method files, and the code that a record fingerprints."""
