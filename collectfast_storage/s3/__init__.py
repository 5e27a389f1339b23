"""S3: requests, keys, listings, and the errors of servers."""
