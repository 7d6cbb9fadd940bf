"""The terminal and the process: progress, messages, signals, memory."""
