"""From a Model's program to a library for one target: decide how it runs. Shared by compile and tune.

`pipeline.lower` lists the steps in order, with the reasons for that order.
"""
