"""What all commands share: options, error handling, exit codes."""
