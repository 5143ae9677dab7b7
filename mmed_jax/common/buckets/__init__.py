"""Google Cloud Storage: objects, a lease, and files that are written here and uploaded."""
