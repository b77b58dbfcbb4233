"""Policies driven over synthetic devices and drafters: what the rules do, without any device.

The growers and the controller are the real ones; step times and acceptance are made up from public
figures. Nothing here measures anything, and every figure it prints says so.
"""
