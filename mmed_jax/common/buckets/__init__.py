"""Google Cloud Storage: the objects of a bucket."""
