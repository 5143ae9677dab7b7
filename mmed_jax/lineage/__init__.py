"""From a finished model back to all that it was made of, each link compared with what is at hand."""
