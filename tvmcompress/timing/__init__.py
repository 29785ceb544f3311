"""Measurements in sessions of boards, each in a process that starts in milliseconds and can be killed.

`session` is what such a process does; `nursery` makes them, from a process that has TVM's runtime loaded and no more.
"""
