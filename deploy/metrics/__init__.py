"""What the deployments export through Ray: the table of names, and how it is filled."""
