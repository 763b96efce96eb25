"""Images examined on the workers of a Ray cluster, of this machine or of many (extra `ray`)."""
