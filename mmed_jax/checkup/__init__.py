"""What `doctor` looks at: the machine, what is installed, where it may write, and what hosts have in common."""
