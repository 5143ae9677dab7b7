"""The Batch API: files of requests sent, watched, read back."""
