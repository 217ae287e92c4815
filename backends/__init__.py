"""What turns a graph into an artifact and runs it; timing."""
