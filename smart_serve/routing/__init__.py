"""Where requests go and how much each replica may speculate, from what the replicas report.

Pure: no Ray, no clock of its own.
"""
