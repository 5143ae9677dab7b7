"""What every part uses and what knows nothing of them: errors, safe files, JSON lines, the terminal."""
