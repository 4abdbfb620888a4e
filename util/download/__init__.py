"""Archives of the public releases."""
