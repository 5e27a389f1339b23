"""S3: the only place that knows keys, requests, and what servers answer."""
